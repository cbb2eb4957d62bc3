"""Costs against MXNet's own counts, published ones, and brute force."""

from __future__ import annotations

import csv
import math
import re
import warnings
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from gluoncv.model_zoo import get_model
from networks import random_keep, random_network, shape_only
from test_network import LISTED

from gcp.backend.files import load, save
from gcp.cost.analytic import describe, macs, params, running_statistics
from gcp.cost.base import COSTS, Budget, Cost, largest_scale, minimum_widths, product, round_width
from gcp.errors import UserError
from gcp.graph.surgery import shrink, with_gates

REFERENCE = Path(__file__).parent.parent / "results" / "reference"


def published(name):
    """Rows of a table of published numbers."""
    with (REFERENCE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


PRUNENETS = published("released_prunenets.csv")
DCP = [row for row in published("published_reference.csv") if re.fullmatch(r"DCP-\d+%", row["method"])]


@pytest.mark.parametrize("name", [*LISTED, "cifar_resnet20_v2"])
def test_params_are_mxnets_own_count(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        block = get_model(name)
        size = 32 if "cifar" in name else 224
        block.infer_shape(mx.nd.zeros((1, 3, size, size)))
    counted = {True: 0, False: 0}
    for key, p in block.collect_params().items():
        assert p.grad_req == "write" or key.endswith(("running_mean", "running_var", "gamma", "beta"))
        counted[p.grad_req != "null"] += int(np.prod(p.shape))
    net = shape_only(name, (3, size, size))
    facts = describe(net)
    assert facts["params"] == counted[True] == params(net)(net.widths)
    # Version-2 ResNets also hold a scale and a shift for the image that are no parameters.
    fixed = 6 if "_v2" in name and "mobile" not in name else 0
    assert facts["running_statistics"] == running_statistics(net) == counted[False] - fixed


@pytest.mark.parametrize(
    "name, gmacs",
    [
        ("resnet18_v1b", "1.814"),
        ("resnet50_v1b", "4.089"),
        ("resnet50_v1d", "4.329"),
        pytest.param("resnet101_v1b", "7.801", marks=pytest.mark.slow),
        pytest.param("vgg16_bn", "15.470", marks=pytest.mark.slow),
        ("mobilenet1.0", "0.569"),
        ("mobilenetv2_1.0", "0.301"),
    ],
)
def test_published_macs(name, gmacs):
    net = shape_only(name)
    assert f"{macs(net)(net.widths) / 1e9:.3f}" == gmacs


def test_macs_of_the_first_layers_by_hand():
    net = shape_only("resnet18_v1b")
    per_channel = macs(net).marginal(net.widths)
    # Made at 56x56 from 64 channels by 3x3, read so by one conv.
    assert per_channel["layers1_conv0"] == 2 * 64 * 9 * 56 * 56
    # The stem's: 7x7 from the image at 112x112; four convs of stage 1, 3x3 and 1x1 of stage 2 at 28x28.
    assert per_channel["conv0"] == (3 * 49 * 112 * 112 + 4 * 64 * 9 * 56 * 56 + 128 * (9 + 1) * 28 * 28)
    # Weights, and scale and shift of its norm.
    assert params(net).marginal(net.widths)["layers1_conv0"] == 2 * 64 * 9 + 2


@pytest.mark.parametrize("row", DCP, ids=lambda row: f"{row['network']}-{row['method']}")
def test_dcp_published_counts_from_its_in_block_rule(row):
    """DCP cuts outputs of conv1 and conv2 of each bottleneck (conv1 of each basic block), rounding the cut down."""
    net = shape_only(row["network"].lower().replace("-", "") + "_v1b")
    percent = int(re.search(r"\d+", row["method"]).group())
    inside = {g.name for g in net.groups if len(g.producers) == 1 and g.name != "conv0"}
    assert len(inside) == {"ResNet-18": 8, "ResNet-50": 32}[row["network"]]
    widths = {g: n - n * percent // 100 if g in inside else n for g, n in net.widths.items()}
    n_params, n_macs = params(net)(widths), macs(net)(widths)
    said_params, said_macs = re.search(r"([\d.]+)M params ([\d.]+)G MACs", row["notes"]).groups()
    for dense, pruned, said, reduction in (
        (params(net)(net.widths) / 1e6, n_params / 1e6, said_params, row["params_reduction"]),
        (macs(net)(net.widths) / 1e9, n_macs / 1e9, said_macs, row["flops_reduction"]),
    ):
        assert f"{pruned:#.3g}" == said
        # Its reductions are quotients of rounded counts.
        assert f"{float(f'{dense:.3g}') / float(said):.2f}x" == reduction


@pytest.mark.slow
@pytest.mark.parametrize("row", PRUNENETS, ids=lambda row: row["model"])
def test_params_kept_of_the_released_networks(row):
    net, base = shape_only(row["model"]), shape_only(row["base_model"])
    kept = params(net)(net.widths) / params(base)(base.widths)
    assert math.floor(100 * kept) / 100 == float(row["model"].rsplit("_", 1)[1])  # names are truncated
    # The table's params_m leaves out scales and shifts, of which there are as many as running statistics; its
    # params_kept divides that by all of the base network's, and macs_reduction is a quotient of rounded counts.
    bare = params(net)(net.widths) - running_statistics(net)
    assert f"{bare / 1e6:.3f}" == row["params_m"]
    assert bare / params(base)(base.widths) == pytest.approx(float(row["params_kept"]), abs=6e-4)
    assert macs(net)(net.widths) / 1e9 == pytest.approx(float(row["gmacs_224"]), abs=6e-4)
    gmacs = round(macs(base)(base.widths) / 1e9, 3)
    assert gmacs / float(row["gmacs_224"]) == pytest.approx(float(row["macs_reduction"]), abs=6e-3)
    # The same groups: the released widths are a pruning of the base network.
    assert list(net.widths) == list(base.widths)
    assert params(base)(net.widths) == params(net)(net.widths) and macs(base)(net.widths) == macs(net)(net.widths)


@pytest.mark.parametrize("objective", ["macs", "params"])
@pytest.mark.parametrize(
    "name",
    [
        "resnet18_v1b",
        "resnet50_v1",
        "resnet50_v1d",
        "resnet18_v2",
        "mobilenet1.0",
        "mobilenetv2_1.0",
        "vgg16_bn",
        "cifar_resnet20_v2",
    ],
)
def test_marginal_cost_is_the_difference_of_whole_costs(name, objective):
    net = shape_only(name, (3, 32, 32) if "cifar" in name else (3, 224, 224))
    cost, rng = COSTS[objective](net), np.random.default_rng(0)
    for widths in (net.widths, {g: int(rng.integers(2, n + 1)) for g, n in net.widths.items()}):
        marginal = cost.marginal(widths)
        assert list(marginal) == list(widths)
        for g in widths:
            assert marginal[g] == cost(widths) - cost({**widths, g: widths[g] - 1})


@pytest.mark.parametrize(
    "name",
    [
        *("cifar_resnet20_v1", "mobilenet1.0", "mobilenetv2_1.0"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18_v2", "vgg16_bn")),
    ],
)
def test_cost_of_widths_is_that_of_the_removed_network(name):
    net = random_network(name)
    keep = random_keep(net, 0.3)
    small = shrink(net, keep)
    widths = {g: len(k) for g, k in keep.items()}
    assert macs(net)(widths) == macs(small)(small.widths)
    added = sum(small.arrays[k].size for k in small.arrays if k not in net.arrays)  # biases that took up constants
    assert params(net)(widths) + added == params(small)(small.widths)
    assert params(small)(small.widths) + running_statistics(small) == sum(v.size for v in small.arrays.values()) - (
        6 if "_v2" in name else 0
    )


def test_linear_groups_cost_the_same_at_any_width():
    # A conv of the stem with no tied reader: cost is linear in one width, so is its marginal cost constant.
    net = shape_only("resnet18_v1b")
    cost = macs(net)
    narrow = {**net.widths, "layers1_conv0": 5}
    assert cost.marginal(narrow)["layers1_conv0"] == cost.marginal(net.widths)["layers1_conv0"]


@pytest.mark.slow
def test_masks_count_as_parameters_until_folded():
    net = random_network("vgg16_bn")
    assert params(with_gates(net))(net.widths) - params(net)(net.widths) == 2 * 4096
    assert macs(with_gates(net))(net.widths) == macs(net)(net.widths)


def test_a_fixed_scale_stays_fixed_in_a_saved_network(tmp_path):
    net = random_network("cifar_resnet20_v2")
    save(net, tmp_path / "net")
    again = load(tmp_path / "net")
    assert describe(again) == describe(net)


# ---- budgets ----------------------------------------------------------------------------------------------------


def test_allowed_widths():
    assert [round_width(w, 64, 8) for w in (64, 63, 56, 9, 8, 7, 0)] == [64, 56, 56, 8, 8, 8, 8]
    assert [round_width(w, 20, 8) for w in (20, 19, 16, 3)] == [20, 16, 16, 8]  # all of a group is allowed too
    assert [round_width(w, 5, 8) for w in (5, 4, 1)] == [5, 5, 5]
    assert [round_width(w, 5, 1) for w in (5, 4, 1, 0)] == [5, 4, 1, 1]
    assert minimum_widths({"a": 64, "b": 5}, 8) == {"a": 8, "b": 5}


def test_a_budget_says_the_lowest_target_it_can_reach():
    net = shape_only("resnet18_v1b")
    cost = macs(net)
    with pytest.raises(UserError) as error:
        Budget(cost, cost(net.widths), 0.01, 16).check(net.widths)
    lowest = float(re.search(r"at least ([\d.]+)", str(error.value)).group(1))
    assert "prune.target: 0.01" in str(error.value) and "prune.round_to: 16" in str(error.value)
    Budget(cost, cost(net.widths), lowest, 16).check(net.widths)
    with pytest.raises(UserError):
        Budget(cost, cost(net.widths), lowest - 2e-4, 16).check(net.widths)
    Budget(cost, cost(net.widths), 0.01, 1).check(net.widths)


def test_the_largest_scale_within_a_limit():
    cost = Cost([product(3.0, "a")])
    found = largest_scale(lambda scale: {"a": int(10 * scale)}, cost, 21.0, 2.0)
    assert found == pytest.approx(0.8) and int(10 * found) == 7, "seven channels cost 21, and at 0.8 there are eight"
    assert largest_scale(lambda scale: {"a": int(10 * scale)}, cost, 60.0, 2.0) == pytest.approx(2.0)
    assert largest_scale(lambda scale: {"a": 5 + int(scale)}, cost, 1.0, 2.0) == pytest.approx(0.0, abs=1e-9)
