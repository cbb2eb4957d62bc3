"""The benchmark runs through every section; no timing is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mutations import tried
from mxnet import autograd
from networks import shape_only

from gcp import benchmark
from gcp.backend import blocks
from gcp.backend.zoo import from_gluoncv
from gcp.errors import UserError
from gcp.graph import network
from gcp.train.tasks import CLASSIFICATION

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("frozen", [True, False])
def test_one_bulk_changes_no_gradient(frozen, monkeypatch):
    net = from_gluoncv("cifar_resnet20_v1", (3, 16, 16), 4, seed=0)
    x, y = benchmark.batch(benchmark.Case("cifar_resnet20_v1", 16, 4, 4))

    def gradients() -> dict:
        block = blocks.to_block(net, x.context, frozen, network.scale_arrays(net) if frozen else None)
        for _ in range(2):
            with autograd.record():
                loss = CLASSIFICATION.loss(block(x), y)
            loss.backward()
        return {k: p.grad().asnumpy() for k, p in block.collect_params().items() if p.grad_req != "null"}

    one = gradients()
    monkeypatch.setattr(blocks, "BACKWARD_BULK", 15)
    many = gradients()
    assert one.keys() == many.keys()
    for name in one:
        assert np.array_equal(one[name], many[name]), name


@pytest.mark.slow
def test_quick_runs_through_every_section(tmp_path):
    path = tmp_path / "b.json"
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--quick", "--repeats", "2"]
    done = subprocess.run(
        [*command, "--json", str(path)],
        cwd=ROOT,
        check=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )
    result = json.loads(path.read_text())
    assert set(result["details"]) == set(benchmark.NAMES)
    assert {r["section"] for r in result["rows"]} == set(benchmark.NAMES)
    for row in result["rows"]:
        assert set(row) == set(benchmark.Row.__dataclass_fields__)
        assert row["ratio"] > 0 and row["low"] <= row["high"]
    for name in benchmark.STEPS:
        wanted = {"images_per_second", "optimiser_share", "conv_seconds"}
        assert wanted <= set(result["details"][name])
    assert {"versions", "device", "git_commit", "repeats"} <= set(result)
    assert done.stdout.count("\n|") == len(result["rows"]) + 1  # the head is the first line


def test_a_renewed_section_takes_the_place_of_the_old_one():
    def result(date, *sections):
        return {
            "rows": [{"section": s, "ratio": date} for s in sections],
            "details": {s: {"at": date} for s in sections},
            "measured": {s: {"date": date} for s in sections},
            "date": date,
        }

    both = benchmark.renewed(result(1, "schedule", "describe", "borders"), result(2, "memory", "describe"))
    assert [(r["section"], r["ratio"]) for r in both["rows"]] == [
        ("schedule", 1),
        ("describe", 2),
        ("memory", 2),
        ("borders", 1),
    ]
    assert {k: v["date"] for k, v in both["measured"].items()} == {
        "schedule": 1,
        "describe": 2,
        "memory": 2,
        "borders": 1,
    }
    assert both["details"]["describe"] == {"at": 2} and both["date"] == 2


@pytest.mark.parametrize("repeats, said", [((7, 5, 6), "medians of 5 to 7;"), ((7, 7), "medians of 7;")])
def test_a_table_says_of_how_many_rounds_its_medians_are(repeats, said):
    measured = {name: {"repeats": n} for name, n in zip(benchmark.NAMES, repeats)}
    device = {"name": "cpu", "cpu": "Test CPU", "threads": 1}
    assert said in benchmark.table({"rows": [], "measured": measured, "repeats": repeats[0], "device": device})


def test_a_file_of_another_machine_is_not_renewed(tmp_path):
    path = tmp_path / "b.json"
    checked_in = json.loads((ROOT / "results" / "benchmark" / "benchmark.json").read_text())
    path.write_text(json.dumps({**checked_in, "device": {"name": "cpu", "cpu": "another", "threads": 1}}))
    code, out, err = tried(["benchmark.py", "--quick", "--only", "describe", "--json", str(path)])
    assert (code, out) == (2, "") and "another machine" in err and err.count("\n") == 1


@pytest.mark.slow
def test_gcps_step_leaves_out_most_weight_gradients():
    """By oneDNN's own report; where there is none (no oneDNN in this MXNet), there are no calls."""
    frozen, ordinary = (
        {kernel: len(calls) for kernel, calls in benchmark.conv_calls(benchmark.TINY, kind).items()}
        for kind in ("gcp", "ours")
    )
    n = sum(node.op == "Convolution" for node in shape_only(benchmark.TINY.network).nodes)
    if any(ordinary.values()):
        assert ordinary == {"forward_training": n, "backward_data": n - 1, "backward_weights": n}
        assert frozen["forward_training"] == n and frozen["backward_data"] == n - 1
        assert frozen["backward_weights"] < n / 4  # none is asked for; MXNet's static graphs compute a few


def test_an_unknown_measurement():
    with pytest.raises(UserError, match="resnet50-224"):
        benchmark.run(["resnet"])
