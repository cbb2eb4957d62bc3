"""Holds the plan of the package: which room may import which, and who may import mxnet."""
from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gcp"

# Lowest floor first: a room imports only from floors below its own.
FLOORS = (
    {"config", "guard"},
    {"records", "launch", "search", "network", "images", "tables"},
    {"gluon", "cost", "data", "archives", "parallel", "figures"},
    {"training", "export", "sampling", "smoke"},
    {"timing", "latency"},
    {"prune"},
    {"baselines"},
    {"experiment", "report", "benchmark", "zoo"},
    {"forecast", "paper", "released"},
)
# What each room may import from gcp, besides config: its UserError is for every room.
IMPORTS = {
    "config": set(),
    "guard": set(),
    "records": set(),
    "launch": set(),
    "parallel": {"launch"},
    "search": set(),
    "network": set(),
    "gluon": {"network"},
    "images": set(),
    "archives": {"images"},
    "data": {"images"},
    "cost": {"network"},
    "training": {"network", "gluon", "data", "parallel"},
    "export": {"network", "gluon"},
    "timing": {"network", "gluon", "export"},
    "sampling": {"network", "cost"},
    "latency": {"network", "cost", "sampling"},
    "prune": {"network", "cost", "training", "parallel"},
    "baselines": {"network", "cost", "training"},
    "experiment": {"records", "search", "network", "gluon", "data", "cost", "training", "parallel", "export",
                   "timing", "sampling", "latency", "prune", "baselines"},
    "benchmark": {"records", "search", "network", "images", "gluon", "data", "archives", "cost", "training",
                  "latency", "prune", "baselines"},
    "tables": set(),
    "figures": {"tables"},
    "report": {"records", "tables", "figures"},
    "zoo": {"records", "tables", "figures"},
    "smoke": {"data", "archives"},
    "forecast": {"network", "gluon", "cost", "training", "latency", "prune", "baselines", "experiment", "benchmark",
                 "smoke", "tables"},
    "paper": {"records", "tables", "figures", "report", "zoo"},
    "released": {"network", "gluon", "cost", "tables"},
}
# Edges beyond the plan, each with its reason.
EXTRA = {
    ("data", "records"): "a split file is written whole or not at all",
    ("archives", "records"): "prepared files take their place whole or not at all",
    ("gluon", "records"): "saved networks are replaced atomically, as records are",
    ("export", "records"): "exported files take their place whole or not at all",
    ("timing", "records"): "a measurement says where and with what it was made",
    ("latency", "records"): "a model is written whole or not at all",
    ("prune", "gluon"): "which arrays MXNet calls auxiliary",
}
MXNET = {"gluon", "data", "parallel", "training", "timing", "prune", "export", "benchmark", "forecast"}

ROOMS = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imported(room: str) -> tuple[set[str], set[str]]:
    """The rooms and the outside packages that a room imports, inside functions too."""
    rooms, outside = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / f"{room}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(["gcp"] * bool(node.level) + [node.module] * bool(node.module))
            names = [f"gcp.{alias.name}" for alias in node.names] if origin == "gcp" else [origin]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "gcp":
                rooms.add(rest.partition(".")[0])
            else:
                outside.add(top)
    return rooms, outside


def test_every_module_is_a_room_of_the_plan():
    assert set(ROOMS) <= set(IMPORTS), "a new room needs a line in this table; a helper lives beside its caller"


@pytest.mark.parametrize("room", sorted(IMPORTS))
def test_the_plan_goes_down(room):
    floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
    below = set().union(*FLOORS[:floor])
    assert IMPORTS[room] | {to for origin, to in EXTRA if origin == room} <= below


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_plan(room):
    rooms, outside = imported(room)
    allowed = IMPORTS[room] | {"config", "__version__"} | {to for origin, to in EXTRA if origin == room}
    assert rooms <= allowed
    if room not in MXNET:
        assert not outside & {"mxnet", "gluoncv"}
