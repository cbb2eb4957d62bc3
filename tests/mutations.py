"""Bad input of every kind, drawn from a seed: `python tests/mutations.py FOLDER FIRST N` tries N in one process.

A case is one command of one script, with one of the files that it reads or one of its words made wrong. It has to end
with exit status 2 and one line that says what is wrong; where the file or word happens to be right all the same, with
status 0. For each case a line of JSON is written before it (`n`, `what`) and one after it (`problem`, null if none).
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import io
import json
import os
import random
import shlex
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, NamedTuple

REPO = Path(__file__).resolve().parents[1]
TIMEOUT_S = 30
TINY = """
scale: smoke
threads: 1
output: runs
model: {name: cifar_resnet20_v1}
data: {name: digits, input: [3, 8, 8], batch: 16, n_train: 64}
train: {epochs: 0}
prune: {method: uniform, target: 0.5}
"""


class Use(NamedTuple):
    """A command that works, and the file that it reads which is to be made wrong."""

    command: str
    file: str


RUN = "run.py c.yaml --untimed"
CALTECH = "--set 'data={name: caltech256, root: caltech, per_class: 2, input: [3, 8, 8], split_file:"
FOLDER = "evaluate.py net --batch 8 --data folder --root"
USES = (
    Use("reproduce.py c.yaml --dry-run --no-benchmark", "c.yaml"),
    Use(RUN, "c.yaml"),
    Use("reproduce.py child.yaml --dry-run --no-benchmark", "child.yaml"),
    Use("report.py records", "records/a/record.json"),
    Use("report.py records", "records/b/record.json"),
    Use("latency.py predict model.json resnet18_v1b", "model.json"),
    Use("latency.py fit samples.jsonl --out fitted.json", "samples.jsonl"),
    Use("latency.py table validations", "validations/a.validation.json"),
    Use("figure1.py --out figure1", "figure1/measured.json"),
    Use("describe.py net", "net-symbol.json"),
    Use("describe.py net", "net-0000.params"),
    Use("export.py net --onnx net.onnx", "net-symbol.json"),
    Use("export.py net --onnx net.onnx", "net-0000.params"),
    Use("describe.py small.onnx", "small.onnx"),
    Use("describe.py small.onnx", "small.onnx"),
    Use("convert.py parts.onnx out --check", "parts.onnx"),
    Use("convert.py parts.onnx out --check", "parts.bin"),
    Use("convert.py small.safetensors out", "small.safetensors"),
    Use(RUN, "RUN/record.json"),
    Use(RUN, "RUN/log.jsonl"),
    Use(RUN, "RUN/pruned.json"),
    Use(RUN, "RUN/final.json"),
    Use(RUN, "RUN/final-symbol.json"),
    Use(RUN, "DENSE/dense.json"),
    Use(RUN, "DENSE/dense-0000.params"),
    Use(f"{RUN} {CALTECH} split.json}}'", "split.json"),
    Use(f"{RUN} {CALTECH} split.csv}}'", "split.csv"),
    Use("prepare.py folder --root images --out packed --resize 8 --workers 1", "packed/prepared.json"),
    Use(f"{FOLDER} images", "images/train/a/0.png"),
    Use(f"{FOLDER} packed", "packed/train.rec"),
    Use(f"{FOLDER} packed", "packed/train.idx"),
    Use(f"{FOLDER} packed", "packed/classes.txt"),
    Use("benchmark.py --quick --only describe --json benchmark.json", "benchmark.json"),
)
# Commands of which a word is made wrong; of the costly ones only words that are wrong for sure.
COMMANDS = (
    "run.py c.yaml --untimed --set train.epochs=0 seed=1",
    "reproduce.py c.yaml --seeds 0,1 --jobs 1 --dry-run --no-benchmark --set seed=1",
    "reproduce.py c.yaml --report out --seeds 0",
    "report.py records --output out",
    "evaluate.py net --data digits --batch 16 --input 3,8,8",
    "evaluate.py net --data folder --root images --batch 8",
    "export.py net --onnx x.onnx --input 3,8,8 --json x.json",
    "export.py net --int8 x --data digits --calibration 16 --batch 8 --repeats 1 --table t",
    "describe.py net --input 3,8,8 --classes 10 --json",
    "describe.py cifar_resnet20_v1 --input 3,8,8",
    "describe.py small.onnx --input 3,32,32 --classes 10",
    "convert.py small.onnx out --check --input 3,32,32",
    "convert.py net back.onnx --check",
    "compress.py net --data digits --n-train 40 --target 0.5 --epochs 0 --batch 8 --cost params --seed 0 --out small",
    "compress.py net --data images --unlabelled --explore --batch 8 --out small",
    "convert.py small.safetensors out --network resnet18_v1b",
    "latency.py measure net --repeats 1 --batch 1 --threads 1 --json m.json",
    "latency.py sample net --repeats 1 --n 1 --seed 0 --out samples.jsonl",
    "latency.py fit samples.jsonl --out fitted.json",
    "latency.py predict model.json resnet18_v1b",
    "latency.py validate model.json --held-out held.jsonl --n 1",
    "latency.py table validations",
    "figure1.py --out figure1",
    "prepare.py folder --root images --out o --resize 8 --quality 90 --workers 1",
    "prepare.py caltech256 --tar caltech.tar --out o --expect-images 9",
    "prepare.py imagenet --tar-dir images --out o --expect-train 1",
    "launch.py --workers 1 --restarts 0 --hosts localhost --timeout 1 -- run.py c.yaml",
)
PATHS = (
    "~nosuchuser/x",
    "n" * 300,
    "a/" * 3000,
    "loop",
    "pipe",
    "/dev/full",
    "/dev/null",
    "",
    "c.yaml/x",
    "\udcff\udcfe",
)
WORDS = [
    *PATHS,
    *("-1", "1e999", "nan", "9" * 5000, "\u00b2", "3,99999999999999999999,3", "3,8", "0,0", "a=b", "[[", "{a: *b}"),
    *(
        "--nosuch",
        "-",
        "train.epochs=10000000000000000000000",
        "data.root=/nowhere",
        "data.batch=0",
        "output=/dev/null",
    ),
    *("prune.method=gpc", "model.name=no/such", "model.name=" + "x/" * 400, 'model.name="a\\0b"', "seed=!!int ''"),
]
VALUES = (None, True, -1, 0, 1e300, 10**24, "", "x", "\x00", "x" * 5000, [], {}, [[]], {"a": {"b": [None]}}, [1] * 2000)


def build(folder: Path) -> None:
    """One file of every kind, all of them right."""
    import cv2
    import numpy as np
    import onnx
    from safetensors.numpy import save_file

    from gcp import command, runtime

    folder.mkdir(parents=True)
    os.chdir(folder)
    Path("c.yaml").write_text(TINY)
    Path("child.yaml").write_text("base: c.yaml\nprune: {target: 0.6}\n")
    results = REPO / "results"
    for name, path in zip("ab", sorted(results.glob("fashion_mnist/*/record.json"))):
        shutil.copytree(path.parent, f"records/{name}")
    latency = results / "latency" / "resnet18_v1b-32px-batch64"
    shutil.copy(f"{latency}.json", "model.json")
    Path("samples.jsonl").write_text("".join(open(f"{latency}.jsonl").readlines()[:40]))
    for name, source in (("validations/a.validation.json", f"{latency}.validation.json"),
                         ("figure1/measured.json", results / "figure1" / "measured.json")):  # fmt: skip
        Path(name).parent.mkdir()
        shutil.copy(source, name)
    measured = json.loads(next((results / "benchmark").glob("*.json")).read_text())
    Path("benchmark.json").write_text(json.dumps({**measured, "device": runtime.environment()["device"]}))
    shutil.copy(REPO / "tests/golden/onnx/same_padding.onnx", "small.onnx")
    model = onnx.load("small.onnx")
    onnx.save(model, "parts.onnx", save_as_external_data=True, location="parts.bin", size_threshold=0)
    save_file({"fc.weight": np.ones((4, 3), np.float32), "step": np.array(1)}, "small.safetensors")  # no ResNet
    for root, parts in (("images", ("train/", "test/")), ("caltech", ("",))):
        for n, name in enumerate(f"{part}{label}" for part in parts for label in "ab"):
            Path(root, name).mkdir(parents=True)
            for k in range(4):
                cv2.imwrite(f"{root}/{name}/{k}.png", np.full((9, 9, 3), 60 * n + k, np.uint8))
    # Everything but the record of a run is there, so that each try reads all of it again.
    for name, text in (("train", RUN), ("pack", "prepare.py folder --root images --out packed --resize 8 --workers 1")):
        code, _, err = tried(shlex.split(text))
        assert code == 0, (name, err)
    (run,) = Path("runs").glob("c-*")
    (run / "record.json").rename("record.json")
    for prefix in ("-symbol.json", "-0000.params"):
        shutil.copy(f"{run}/final{prefix}", f"net{prefix}")
    names = [f"{label}/{k}.png" for label in "ab" for k in range(4)]
    train, test = ([n for n in names if (int(n[2]) < 2) == first] for first in (True, False))
    Path("split.json").write_text(json.dumps({"train": train, "test": test}))
    rows = [("split", "name"), *(("train", n) for n in train), *(("test", n) for n in test)]
    Path("split.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    assert command.GUARDED not in os.environ


def tried(words: list[str]) -> tuple[int, str, str]:
    """A command's exit status and what it printed, from this process and this working directory."""
    from gcp import command

    spec = importlib.util.spec_from_file_location("script", REPO / "scripts" / words[0])
    module = importlib.util.module_from_spec(spec)
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        spec.loader.exec_module(module)
        code = command.status(module.run, words[1:])
    for stream in streams:
        stream.flush()
    return (code, *(stream.buffer.getvalue().decode() for stream in streams))


# Making something wrong


def spoil_bytes(draw: random.Random, content: bytes) -> tuple[str, bytes, bool]:
    """What was done to the content, the new one, and whether it is now wrong for sure."""
    at = draw.randrange(len(content) + 1)
    return draw.choice((
        ("emptied", b"", True),
        (f"cut after {at}", content[:at], False),
        (f"byte {at} changed", content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :], False),
        (f"zeros at {at}", content[:at] + bytes(8) + content[at + 8 :], False),
        (f"twice up to {at}", content[:at] + content, False),
        ("junk", draw.randbytes(200), True),
        ("not UTF-8", b"\xff\xfe\x00" + content, True),
    ))  # fmt: skip


def spoil_text(draw: random.Random, content: bytes) -> tuple[str, bytes, bool]:
    """As `spoil_bytes`, for YAML and JSON."""
    text = content.decode()
    digit = draw.choice([c for c in "0123456789" if c in text] or [text[:1]])
    tag = draw.choice(("!!int ''", "!!bool maybe", "!!timestamp abc", "!!set [1]"))
    bomb = "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12))
    how, new, wrong = draw.choice((
        ("nested 5000 deep", "[" * 5000 + "]" * 5000, True),
        ("nested 100,000 deep and open", '{"a":' * 10**5, True),
        ("an alias bomb", bomb, True),
        ("a number of 5000 digits", text.replace(digit, "9" * 5000, 1), False),
        ("NaN", text.replace(digit, "NaN", 1), False),
        ("1e999", text.replace(digit, "1e999", 1), False),
        ("half a character", text.replace(":", r': "\ud800", "x":', 1), False),
        ("a wrong tag", text.replace(": ", f": {tag} ", 1), False),
        ("a list", "[1, 2]", True),
        ("a number", "7", True),
        ("base: itself", "base: c.yaml\n" + text, False),
        ("base: null byte", 'base: "a\\0b"\n' + text, False),
        ("base: loop", "base: loop\n" + text, False),
    ))  # fmt: skip
    return how, new.encode(), wrong


def spoil_json(draw: random.Random, content: bytes) -> tuple[str, bytes, bool]:
    """One value, anywhere in a JSON file or in one of its lines, taken away or replaced."""
    lines = content.decode().splitlines() if content.count(b"\n{") else [content.decode()]
    row = draw.randrange(len(lines))
    root = {"": json.loads(lines[row])}
    place, holder, key = [], root, ""
    while isinstance(holder[key], (dict, list)) and holder[key] and (not place or draw.random() < 0.8):
        holder = holder[key]
        key = draw.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
        place.append(str(key))
    how = draw.choice(("removed", "replaced", "renamed", "negated"))
    if how == "removed" and place:
        del holder[key]
    elif how == "renamed" and isinstance(holder, dict) and place:
        holder[f"{key}x"] = holder.pop(key)
    elif how == "negated" and isinstance(holder[key], (int, float)):
        holder[key] = -1 - 2 * holder[key]
    else:
        how, holder[key] = "replaced", draw.choice(VALUES)
        how += f" by {str(holder[key])[:20]!r}"
    lines[row] = json.dumps(root.get("", root.get("x")))
    return f"line {row + 1}: {'.'.join(place)} {how}", "\n".join(lines).encode() + b"\n", False


def spoil_onnx(draw: random.Random, content: bytes) -> tuple[str, bytes, bool]:
    """One thing in the graph of an ONNX file changed."""
    import onnx

    model = onnx.ModelProto.FromString(content)
    graph, number = model.graph, draw.choice((0, -1, 1, 7, 2**31, 2**62))
    node, array = draw.choice(graph.node), draw.choice(graph.initializer)
    how = draw.choice(("removed", "renamed", "another operator", "an attribute", "a shape", "a type", "inputs", "opset",
                       "the image", "a place"))  # fmt: skip
    if how == "removed":
        graph.node.remove(node)
    elif how == "renamed":
        node.output[0] += "x"
    elif how == "another operator":
        node.op_type = draw.choice([schema.name for schema in onnx.defs.get_all_schemas()])
    elif how == "an attribute" and node.attribute:
        attribute = draw.choice(node.attribute)
        attribute.ints[:], attribute.i, attribute.type = [number] * draw.randrange(9), number, draw.randrange(9)
    elif how == "a shape" and array.dims:
        array.dims[draw.randrange(len(array.dims))] = number
    elif how == "a type":
        array.data_type = draw.randrange(30)
    elif how == "inputs":
        names = [name for each in graph.node for name in (*each.input, *each.output)]
        node.input[:] = [draw.choice(names) for _ in range(draw.randrange(4))]
    elif how == "opset":
        model.opset_import[0].version = number
    elif how == "a place" and array.external_data:
        draw.choice(array.external_data).value = draw.choice(
            ("", "..", "/etc/passwd", "small.onnx", "loop", str(number))
        )
    else:
        dims = graph.input[0].type.tensor_type.shape.dim
        draw.choice(dims).dim_value = number
    return f"{how}, {node.name}, {number}", model.SerializeToString(), False


def spoil_file(draw: random.Random, path: Path) -> tuple[str, bool]:
    """Make a file wrong; what was done, and whether it is wrong for sure."""
    if draw.random() < 0.15:
        how = draw.choice(("a folder", "a pipe", "a loop", "absent", "huge"))
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "a pipe":
            os.mkfifo(path)
        elif how == "a loop":
            path.symlink_to(path.name)
        elif how == "huge":
            with open(path, "wb") as file:
                file.truncate(2**33)
        return f"{path} {how}", how != "absent"
    content, spoils = path.read_bytes(), [spoil_bytes]
    if path.suffix in (".json", ".jsonl", ".yaml"):
        spoils += [spoil_text]
    if path.suffix in (".json", ".jsonl"):
        spoils += [spoil_json] * 4
    if path.suffix == ".onnx":
        spoils += [spoil_onnx] * 4
    how, content, wrong = draw.choice(spoils)(draw, content)
    path.write_bytes(content)
    return f"{path} {how}", wrong


def spoil_word(draw: random.Random, words: list[str]) -> tuple[str, bool]:
    """Make one word of a command wrong, or take it away."""
    at = draw.randrange(1, len(words))
    if draw.random() < 0.15:
        return f"without {words.pop(at)}", False
    old, words[at] = words[at], draw.choice(WORDS)
    return f"{words[at][:30]!r} for {old}", False


# Trying


class Late(BaseException):
    """A case takes too long; nothing but this file catches it."""


def patch() -> None:
    """Nothing that starts other processes or depends on what was imported first."""
    from gcp import runtime
    from gcp.cost import latency
    from gcp.experiment import reproduce
    from gcp.train import guard, launch

    runtime.use_threads = runtime.use_gpu = lambda *_: None
    latency.fit = lambda *_: sys.exit(0)  # it takes seconds, and the samples have been read by then
    launch.supervise = reproduce.reproduce = guard.call = lambda *_: 0


REMADE = ("log.jsonl",)  # of a run: it is only added to, and nothing depends on what it holds


def judged(code: int, out: str, err: str, wrong: bool) -> str | None:
    """What is wrong with how a command ended."""
    errors = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    last = err.replace("\r", "\n").strip().splitlines()[-1:]
    if "Traceback" in err:
        return "a traceback was printed"
    if code == 0:
        return "accepted what is wrong" if wrong else ("an error and success" if errors else None)
    if code != 2:
        return f"exit status {code}"
    if len(errors) != 1 or last != errors:
        return "not one line"
    return None if len(errors[0]) < 1500 else "a line of more than 1,500 characters"


def case(seed: int, bench: Path, folder: Path) -> tuple[str, Callable[[], str | None]]:
    """The case of a seed, in a folder of its own: what it is, and what tries it."""
    draw = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bench, folder)
    os.chdir(folder)
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    if draw.random() < 0.7:
        use = draw.choice(USES)
        (run,), (dense,) = Path("runs").glob("c-*"), Path("runs").glob("dense-*")
        file = Path(use.file.replace("RUN", str(run)).replace("DENSE", str(dense)))
        if file.name == "record.json" and file.parent == run:
            Path("record.json").rename(file)
        how, wrong = spoil_file(draw, file)
        words = shlex.split(use.command)
        # A link of a run's that leads nowhere is nothing, and what is not there is made anew.
        # External data are numbers from where the file says, whatever they are and whatever is around them.
        wrong = (
            wrong
            and file.name not in (*REMADE, "parts.bin")
            and not (how.endswith("a loop") and file.parts[0] == "runs")
        )
    else:
        words = draw.choice(COMMANDS).split(" ")
        how, wrong = spoil_word(draw, words)

    def try_it() -> str | None:
        code, out, err = tried(words)
        problem = judged(code, out, err, wrong)
        return problem and f"{problem}: {code} {err[-600:]}"

    return f"{' '.join(words)[:200]} | {how}", try_it


def main(folder: Path, first: int, n: int) -> None:
    """Try the cases `first` to `first + n`; the files of all kinds are made in `folder`, if they are not there."""
    patch()
    bench, say = folder / "bench", os.fdopen(os.dup(1), "w")
    if not bench.exists():
        build(folder / "new")
        os.chdir(folder)
        (folder / "new").rename(bench)

    def late(*_: Any) -> None:
        raise Late(f"no end after {TIMEOUT_S} s")

    signal.signal(signal.SIGALRM, late)
    for seed in range(first, first + n):
        what, try_it = case(seed, bench, folder / "case")
        print(json.dumps({"n": seed, "what": what}), file=say, flush=True)
        faulthandler.dump_traceback_later(2 * TIMEOUT_S, exit=True)
        signal.alarm(TIMEOUT_S)
        began = time.monotonic()
        try:
            problem = try_it()
        except BaseException:
            problem = "a traceback: " + traceback.format_exc()[-1500:]
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        print(
            json.dumps({"n": seed, "problem": problem, "s": round(time.monotonic() - began, 2)}), file=say, flush=True
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))
