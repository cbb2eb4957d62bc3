"""The seven released PruneNets against what was published of them; and that a disagreement would be seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from networks import shape_only

from gcp.errors import UserError
from gcp.experiment import released

REPO = Path(__file__).resolve().parents[1]
ROWS = released.published(REPO / "results" / "reference")


def test_there_are_seven():
    assert len(ROWS) == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ROWS.index))
def test_they_are_what_was_published(name):
    facts, problems = released.verify(name, ROWS.loc[name], released.shapes(ROWS.shape_json[name]))
    assert not problems
    assert facts["Narrowest"] == 8, "every width in them is a multiple of 8, at least 8"
    # The residual streams of the four stages are tied, and nothing else.
    assert facts["Tied"] == 4


def test_widths_of_the_smallest():
    said = released.shapes(ROWS.shape_json["resnet50_v1d_0.11"])
    net = shape_only("resnet50_v1d_0.11")
    assert said["layers3_conv13_weight"] == [64, 88, 3, 3]
    assert released.disagreeing_shapes(net, said) == released.disagreeing_groups(net, said) == []
    assert all(width % 8 == 0 for width in net.widths.values())


def test_a_wrong_number_is_seen():
    row = ROWS.loc["resnet18_v1b_0.89"].copy()
    row["params_m"], row["macs_reduction"] = 10.438, 2.07
    _, problems = released.verify("resnet18_v1b_0.89", row, released.shapes(row["shape_json"]))
    assert [problem.split(" is ")[0] for problem in problems] == [
        "resnet18_v1b_0.89: params (M)",
        "resnet18_v1b_0.89: reduction of MACs",
    ]


def test_a_wrong_shape_and_a_torn_tie_are_seen():
    net = shape_only("resnet18_v1b_0.89")
    said = released.shapes(ROWS.shape_json["resnet18_v1b_0.89"])
    name = next(net.weight(layer) for g in net.groups if len(g.producers) > 1 for layer in g.producers)
    torn = {**said, name: [said[name][0] + 8, *said[name][1:]]}
    assert any(name in problem for problem in released.disagreeing_shapes(net, torn))
    assert [p for p in released.disagreeing_groups(net, torn) if f"{said[name][0] + 8} outputs" in p]
    less = {key: shape for key, shape in said.items() if key != name}
    assert any("no shape was published" in problem for problem in released.disagreeing_shapes(net, less))


def test_accuracies_agree_to_what_decoders_differ():
    row = ROWS.loc["resnet18_v1b_0.89"]
    assert released.disagreeing_accuracy("n", row, {"top1": 0.6712, "top5": 0.8745}) == []
    assert len(released.disagreeing_accuracy("n", row, {"top1": 0.66, "top5": 0.8745})) == 1


def test_the_published_table_must_be_there(tmp_path):
    with pytest.raises(UserError, match="released_prunenets.csv"):
        released.published(tmp_path)


@pytest.mark.slow
def test_script():
    def script(*args):
        return subprocess.run(
            [sys.executable, str(REPO / "scripts" / "verify_released.py"), *args], capture_output=True, text=True
        )

    done = script()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 networks, 0 disagreements" in done.stdout and "resnet101_v1d_0.73" in done.stdout
    bad = script("--weights")
    assert bad.returncode == 2 and "go together" in bad.stderr
