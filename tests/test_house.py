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


@pytest.mark.parametrize("room", ["graph", "cost", "data", "report"])
def test_rooms_without_mxnet_import_without_it(room):
    modules = [f"gcp.{room}.{path.stem}" for path in (REPO / "gcp" / room).glob("*.py") if path.stem != "__init__"]
    modules = [name for name in modules if name != "gcp.report.estimate"]  # reads rows that a clock helped to make
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; print('mxnet' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
