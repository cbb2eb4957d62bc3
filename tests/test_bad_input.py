"""No bad input ends in a traceback, a hang, a crash or a silent result: see `mutations.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "mutations.py"


def problems(folder: Path, first: int, n: int) -> list[str]:
    """What is wrong with how any of the cases ends. A case that ends its process is one, and the rest goes on."""
    found, seed = [], first
    while seed < first + n:
        command = [sys.executable, "-W", "ignore", str(SCRIPT), str(folder), str(seed), str(first + n - seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=20 * n + 120)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        what = {line["n"]: line["what"] for line in lines if "what" in line}
        ended = {line["n"]: line["problem"] for line in lines if "problem" in line}
        found += [f"{n}: {what[n]}: {problem}" for n, problem in ended.items() if problem]
        crashed = what.keys() - ended.keys()
        found += [f"{n}: {what[n]}: ended the process with {done.returncode}: {done.stderr[-500:]}" for n in crashed]
        seed = max(what) + 1
    return found


@pytest.mark.slow
def test_some_bad_inputs(tmp_path):
    assert problems(tmp_path, 0, 20) == []


@pytest.mark.slow
def test_many_bad_inputs(tmp_path):
    assert problems(tmp_path, 1000, 500) == []


def test_a_crash_and_a_hang_are_found(tmp_path, monkeypatch):
    """The net itself: a script that kills its process, and one that is wrong and silent."""
    fake = tmp_path / "fake.py"
    fake.write_text(
        "import json, os, sys\n"
        "for n in range(int(sys.argv[2]), int(sys.argv[2]) + int(sys.argv[3])):\n"
        "    print(json.dumps({'n': n, 'what': 'w'}), flush=True)\n"
        "    if n == 1:\n        os.kill(os.getpid(), 9)\n"
        "    print(json.dumps({'n': n, 'problem': 'p' if n == 2 else None}), flush=True)\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", fake)
    assert problems(tmp_path, 0, 4) == ["1: w: ended the process with -9: ", "2: w: p"]
