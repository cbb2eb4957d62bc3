"""Holds the plan of the package: imports go down, every room has its floor, and the code is formatted and linted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"],
        ["-m", "ruff", "check", "--no-cache", "."],
        ["-m", "ruff", "format", "--no-cache", "--check", "."],
    ],
    ids=["imports go down", "lint", "format"],
)
def test_the_house_is_in_order(command):
    done = subprocess.run([sys.executable, *command], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_rooms_without_mxnet_import_without_it():
    paths = [path for room in ("graph", "cost", "data", "report") for path in (REPO / "gcp" / room).glob("*.py")]
    modules = [f"gcp.{path.parent.name}.{path.stem}" for path in paths if path.stem != "__init__"]
    code = (
        f"import importlib, sys; print([m for m in {modules} if importlib.import_module(m) and 'mxnet' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
