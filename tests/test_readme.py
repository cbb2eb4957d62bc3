"""README and docs say what is so: tables are those of the files, links lead somewhere, commands run, keys exist.

Fenced blocks of commands say whether they are run here, by the words after the fence's language:

    bash run        run by the ordinary tests
    bash run slow   run by the slow tests
    bash            not run; the block begins with `# Not run by the tests:` and says why

and the same for `python` and `yaml`. The blocks of a page run in its order, in a copy of the checkout.
"""

import errno
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, List, NamedTuple, Set

import pytest

from gcp import errors, options
from gcp.data import datasets
from gcp.data.base import DATASETS
from gcp.experiment import config
from gcp.report import tables

REPO = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    *(
        str(path.relative_to(REPO))
        for pattern in ("docs/*.md", "configs/*/README.md", "results/*/README.md")
        for path in sorted(REPO.glob(pattern))
    ),
]
COPIED = ("README.md", "configs", "docs", "gcp", "results", "scripts", "setup.py", "tests/golden/onnx")
# What runs leave in a checkout, where it is not tracked; a test that found it would not hold elsewhere.
LEFT = ("__pycache__", "*.params", "*.states", "*.npz", "smoke", "runs", "lock", "*.lock", "*-symbol.json")


def left_behind(folder: str, names: List[str]) -> Set[str]:
    """Which of a folder's names are not copied: of dense networks' folders all but statistics, as .gitignore has it."""
    if Path(folder).name.startswith("dense-seed"):
        return {name for name in names if not fnmatch.fnmatch(name, "slimmable-*.statistics.jsonl")}
    return {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in LEFT)}


NOT_RUN = "# Not run by the tests: "
SECONDS = 600


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    words: List[str]
    text: str


def read(page: str) -> str:
    """The page's text."""
    return (REPO / page).read_text(encoding="utf-8")


def blocks(page: str) -> List[Block]:
    """The page's fenced blocks."""
    found = re.findall(r"^```([^\s`]*) ?([^\n]*)\n(.*?)^```$", read(page), flags=re.DOTALL | re.MULTILINE)
    return [Block(language, words.split(), text) for language, words, text in found]


def prose(page: str) -> str:
    """The page without its fenced blocks and embedded tables."""
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!-- begin .*?<!-- end -->", "", text, flags=re.DOTALL)


def commands(page: str) -> List[List[str]]:
    """The words of every line of the page's blocks that starts a script of this project."""
    lines = [line for b in blocks(page) if b.language == "bash" for line in b.text.replace("\\\n", " ").split("\n")]
    words = [shlex.split(line, comments=True) for line in lines if "scripts/" in line]
    return [w for w in words if w and w[0] in ("python", "bash")]


# ---- the pages -----------------------------------------------------------------------------------------------------


def test_readme_is_at_most_150_lines_of_at_most_120_characters_outside_tables():
    assert len(read("README.md").splitlines()) <= 150
    text = re.sub(r"<!-- begin .*?<!-- end -->", "", read("README.md"), flags=re.DOTALL)
    assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- begin" in read(page)])
def test_embedded_tables_are_those_of_the_files(page):
    folder, text = (REPO / page).parent, read(page)
    embedded = re.findall(r"<!-- begin (\S+) -->\n(.*?)\n?<!-- end -->", text, flags=re.DOTALL)
    assert len(embedded) == text.count("<!-- begin") == text.count("<!-- end")
    for path, block in embedded:
        assert block.strip() == (folder / path).read_text(encoding="utf-8").strip(), f"scripts/docs.py renews {path}"


def test_embedding_replaces_what_is_between_the_marks(tmp_path):
    (tmp_path / "t.md").write_text("| new |\n")
    (tmp_path / "d.md").write_text("a\n<!-- begin t.md -->\n| old |\n\n<!-- end -->\nb\n")
    tables.embed(tmp_path / "d.md")
    assert (tmp_path / "d.md").read_text() == "a\n<!-- begin t.md -->\n| new |\n<!-- end -->\nb\n"
    with pytest.raises(errors.UserError, match="t.md"):
        shutil.move(tmp_path / "t.md", tmp_path / "u.md")
        tables.embed(tmp_path / "d.md")


def test_a_page_that_cannot_be_written_keeps_its_text(tmp_path, monkeypatch):
    def full(path: Path, *_: object, **how: object) -> None:
        with open(path, "w"):
            raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "t.md").write_text("| new |\n")
    (tmp_path / "d.md").write_text("a\n<!-- begin t.md -->\n<!-- end -->\n")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(errors.UserError, match="No space"):
        tables.embed(tmp_path / "d.md")
    assert (tmp_path / "d.md").read_text() == "a\n<!-- begin t.md -->\n<!-- end -->\n"


def anchors(page: Path) -> List[str]:
    """The names by which GitHub links to the page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES)
def test_links_pictures_and_named_files_exist(page):
    folder, text = (REPO / page).parent, prose(page)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = folder / path if path else REPO / page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target
    for path in re.findall(r"`((?:gcp|configs|scripts|tests|docs|results/\w+)/[\w./*+-]+)`", text):
        if path.startswith(("results/demo", "results/smoke", "results/imagenet", "results/caltech256")):
            continue  # made by runs
        assert list(REPO.glob(path)), path


def test_readme_links_to_every_page_of_docs():
    linked = set(re.findall(r"\]\((docs/\w+\.md)", read("README.md")))
    assert linked == {page for page in PAGES if page.startswith("docs/")}


# ---- keys of configurations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.language == "yaml" for b in blocks(page))])
def test_examples_of_configurations_load(page, tmp_path):
    for block in blocks(page):
        if block.language == "yaml":
            (tmp_path / "my.yaml").write_text(block.text)
            assert config.load(tmp_path / "my.yaml", ["prune.target=0.2"]).prune.target == 0.2


def field_of(key: str) -> Any:
    """The schema's field of a dotted key; of `data`, that of any data set. KeyError: there is none."""
    kinds = [config.Config]
    for word in key.split("."):
        fields = [kind.model_fields[word] for kind in kinds if word in kind.model_fields]
        if not fields:
            raise KeyError(key)
        kinds = [field.annotation for field in fields if isinstance(field.annotation, type)]
        kinds = [kind for kind in kinds if issubclass(kind, options.Options)]
        kinds += [DATASETS.options[name] for name in DATASETS] if word == "data" else []
    return fields[0]


@pytest.mark.parametrize("page", PAGES)
def test_keys_exist_and_defaults_are_those_of_the_schema(page):
    sections = "|".join(name for name, f in config.Config.model_fields.items() if field_of_is_section(name))
    for key in re.findall(rf"`((?:{sections})\.[a-z][\w.]*)[`:=]", prose(page)):
        assert key.endswith((".rec", ".json")) or field_of(key), key
    for key, value in re.findall(r"`([a-z][\w.]+)` \(default `([^`]+)`\)", prose(page)):
        assert str(field_of(key).default) == value, key


def field_of_is_section(name: str) -> bool:
    """Whether a key of the top level is a section."""
    kind = config.Config.model_fields[name].annotation
    return isinstance(kind, type) and issubclass(kind, options.Options)


# ---- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_commands_says_whether_it_is_run(page):
    for block in blocks(page):
        if block.language == "bash":
            assert block.words in (["run"], ["run", "slow"]) or block.text.startswith(NOT_RUN), block.text
        assert block.language in ("bash", "python", "yaml", "text"), block


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_scripts_options_and_configurations_in_commands_exist(page):
    shared = (REPO / "gcp" / "command.py").read_text()
    for words in commands(page):
        for start in [i for i, word in enumerate(words) if word.startswith("scripts/")]:
            script = REPO / words[start]
            assert script.is_file(), words
            own = words[start + 1 :]
            own = own[: own.index("--")] if "--" in own else own  # of launch.py: what follows is a command of its own
            if script.suffix == ".py":
                for option in [word for word in own if word.startswith("--")]:
                    assert f'"{option}"' in script.read_text() + shared, (words, option)
            if script.name in ("run.py", "reproduce.py") and own[0].startswith("configs/"):
                sets = [word for word in own if re.match(r"[a-z][\w.]*=", word) and "$" not in word]
                overlays = [own[i + 1] for i, word in enumerate(own) if word == "--overlay"]
                assert config.load_all(REPO / own[0], sets, None, [REPO / path for path in overlays]), words


def runnable(page: str) -> List[Block]:
    """The blocks of the page that are run here, in its order."""
    return [block for block in blocks(page) if "run" in block.words and block.language != "yaml"]


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is tracked, so that commands leave the checkout as it is and pages do not depend on each other."""
    folder = tmp_path / "gcp"
    folder.mkdir()
    for name in COPIED:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, folder / name, ignore=left_behind)
        else:
            shutil.copy(REPO / name, folder)
    return folder


def run(block: Block, folder: Path) -> None:
    """Run a block in the copy, with the Python of the tests as `python`."""
    binaries = folder.parent / "bin"
    binaries.mkdir(exist_ok=True)
    python = binaries / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    start = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-W", "ignore", "-c"]
    done = subprocess.run(
        [*start, block.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any("slow" not in b.words for b in runnable(p))])
def test_commands_run(page, checkout):
    for block in runnable(page):
        if "slow" not in block.words:
            run(block, checkout)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any("slow" in b.words for b in runnable(p))])
def test_slow_commands_run(page, checkout):
    for block in runnable(page):
        run(block, checkout)


def test_data_sets_in_the_text_are_those_of_the_registry():
    named = set(re.findall(r"^\| `(\w+)`", read("docs/data.md"), flags=re.MULTILINE))
    assert named == set(DATASETS) and datasets
