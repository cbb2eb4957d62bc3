"""What README shows is what the files say, and what it names is there."""

import re
import shutil
from pathlib import Path

import pytest

from gcp import errors
from gcp.experiment import config
from gcp.experiment.config import Prune
from gcp.report import report

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", ["README.md", "configs/imagenet/README.md"])
def test_embedded_tables_are_those_of_the_files(document):
    folder, text = (REPO / document).parent, (REPO / document).read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- begin (\S+) -->\n(.*?)\n?<!-- end -->", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    for path, block in blocks:
        assert block.strip() == (folder / path).read_text(encoding="utf-8").strip(), (
            f"run report.py with --embed: {path}"
        )


def test_embedding_replaces_what_is_between_the_marks(tmp_path):
    (tmp_path / "t.md").write_text("| new |\n")
    (tmp_path / "d.md").write_text("a\n<!-- begin t.md -->\n| old |\n\n<!-- end -->\nb\n")
    report.embed(tmp_path / "d.md")
    assert (tmp_path / "d.md").read_text() == "a\n<!-- begin t.md -->\n| new |\n<!-- end -->\nb\n"
    with pytest.raises(errors.UserError, match="t.md"):
        shutil.move(tmp_path / "t.md", tmp_path / "u.md")
        report.embed(tmp_path / "d.md")


def test_pictures_scripts_and_folders_exist():
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (REPO / path).is_file(), path
    for path in re.findall(r"(?:python|bash) (scripts/[\w.]+\w)", README):
        assert (REPO / path).is_file(), path
    for path in re.findall(r"\bconfigs/[\w.]*\w", README):
        assert (REPO / path).is_file() or list((REPO / path).rglob("*.yaml")), path


def test_the_example_config_is_one(tmp_path):
    text = re.search(r"```yaml\n(.*?)```", README, flags=re.DOTALL)[1]
    (tmp_path / "my.yaml").write_text(text)
    assert config.load(tmp_path / "my.yaml", ["prune.target=0.2"]).prune.target == 0.2


def test_the_defaults_that_readme_states():
    prune = Prune()
    assert (prune.gcp.score, prune.gcp.schedule, prune.round_to) == ("taylor", "geometric", 8)
