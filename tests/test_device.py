"""Devices that a file describes: layers by hand, the staircase, depthwise convolutions, and files that are wrong."""

from __future__ import annotations

import re
from pathlib import Path

import mxnet as mx
import pytest
import yaml
from networks import built, shape_only

from gcp.cost.base import COSTS
from gcp.cost.device import Device, DeviceOptions, device_time, read
from gcp.cost.layers import layers
from gcp.errors import UserError

REPO = Path(__file__).resolve().parents[1]
EXAMPLE = REPO / "configs" / "device.yaml"
CHIP = Device(
    name="chip",
    parallel_inputs=4,
    parallel_outputs=8,
    macs_per_cycle=32,
    clock_mhz=1.0,
    bandwidth_gb_per_s=1.0,
    on_chip_kb=1e6,
    bytes_per_value=1,
)


def chip(path, **other):
    path.write_text(yaml.safe_dump({**CHIP.model_dump(), **other}))
    return DeviceOptions(device=str(path))


def two_layers(n=8):
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=n, kernel=(3, 3), pad=(1, 1), name="conv")
    return built(mx.sym.FullyConnected(mx.sym.relu(x), num_hidden=2, name="dense"), (3, 5, 5))


def test_layers_by_hand(tmp_path):
    """A conv of 3 to 8 channels in blocks of 4 and 8, then a dense layer of 200 inputs and 2 outputs."""
    net = two_layers()
    conv, dense = 9 * 25 * 4 * 8 / 32, 25 * 8 * 8 / 32  # cycles
    assert device_time(net, chip(tmp_path / "d"))(net.widths) == pytest.approx((conv + dense) / 1e6)
    # Two outputs use a block of eight, and so do seven channels of the conv one more than six of four.
    assert device_time(net, chip(tmp_path / "d"))({"conv": 7}) == pytest.approx((conv + dense) / 1e6)
    assert device_time(net, chip(tmp_path / "d"))({"conv": 4}) == pytest.approx((conv + dense / 2) / 1e6)
    late = device_time(net, chip(tmp_path / "d", overhead_us=3.0))(net.widths)
    assert late == pytest.approx((conv + dense) / 1e6 + 2 * 3e-6)


def test_slow_memory_decides_where_more_bytes_move_than_can_be_multiplied(tmp_path):
    net = two_layers()
    weights, activations = (9 * 3 * 8, 25 * 8 * 2), (3 * 25 + 8 * 25, 8 * 25 + 2)
    slow = {"bandwidth_gb_per_s": 1e-6, "bytes_per_value": 4}
    found = device_time(net, chip(tmp_path / "d", **slow))(net.widths)
    assert found == pytest.approx(4 * sum(weights) / 1e3)
    found = device_time(net, chip(tmp_path / "d", **slow, on_chip_kb=0.9))(net.widths)  # the dense layer's fit
    assert found == pytest.approx(4 * (sum(weights) + activations[0]) / 1e3)


def test_a_depthwise_conv_uses_one_lane_of_its_inputs(tmp_path):
    net = shape_only("mobilenet0.25", (3, 32, 32))
    options = chip(tmp_path / "d", parallel_inputs=1, parallel_outputs=1, macs_per_cycle=1)
    assert device_time(net, options)(net.widths) == pytest.approx(COSTS["macs"](net)(net.widths) / 1e6)
    wide = chip(tmp_path / "e", parallel_inputs=16, parallel_outputs=1, macs_per_cycle=16)
    by_operator = {layer.operator: 0.0 for layer in layers(net)}
    for layer in layers(net):
        pairs = layer.outputs(net.widths) * (16 if layer.depthwise else -(-layer.widths(net.widths)[0] // 16) * 16)
        by_operator[layer.operator] += layer.kernel_size * layer.positions * pairs / 16e6
    assert device_time(net, wide)(net.widths) == pytest.approx(sum(by_operator.values()))
    assert by_operator["depthwise 3x3"] > 0.3 * sum(by_operator.values())  # of 3 % of the multiply-accumulates


@pytest.mark.parametrize("groups", [2, 4, 8, 16])
def test_a_grouped_conv_uses_the_lanes_of_the_inputs_of_a_group(tmp_path, groups):
    """Of 32 channels: whole groups can be removed where there are more than channels in each, else channels of all."""
    x = mx.sym.relu(mx.sym.Convolution(mx.sym.var("data"), num_filter=32, kernel=(3, 3), pad=(1, 1), name="a"))
    x = mx.sym.Convolution(x, num_filter=32, kernel=(3, 3), pad=(1, 1), num_group=groups, name="grouped")
    net = built(mx.sym.FullyConnected(mx.sym.relu(x), num_hidden=2, name="dense"), (3, 5, 5))
    term = next(term for term in device_time(net, chip(tmp_path / "d")).terms if term.place == "grouped")
    blocks = -(-(32 // groups) // 4) * 4
    assert term.value(*[net.widths[name] for name in term.names]) == pytest.approx(9 * 25 * blocks * 32 / 32 / 1e6)


def test_widths_within_a_block_take_as_long(tmp_path):
    net = shape_only("resnet18_v1b", (3, 32, 32))
    cost = device_time(net, DeviceOptions(device=str(EXAMPLE)))
    whole = {g: n // 2 for g, n in net.widths.items()}
    assert all(n % 16 == 0 for n in whole.values()) and cost.granularity == 16
    on_chip = read(EXAMPLE).model_copy(update={"bandwidth_gb_per_s": 1e5})
    path = tmp_path / "fast.yaml"
    path.write_text(yaml.safe_dump(on_chip.model_dump()))
    fast = device_time(net, DeviceOptions(device=str(path)))
    assert fast({g: n - 15 for g, n in whole.items()}) == fast(whole) < fast({g: n + 1 for g, n in whole.items()})


@pytest.mark.parametrize(
    "change, said",
    [
        ({"clock_mhz": None}, "clock_mhz"),
        ({"parallel_inputs": 0}, "parallel_inputs"),
        ({"bandwidth_gb_per_s": -1.0}, "bandwidth_gb_per_s"),
        ({"on_chip_kb": float("inf")}, "on_chip_kb"),
        ({"macs_per_cycle": "many"}, "macs_per_cycle"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_key(tmp_path, change, said):
    path = tmp_path / "device.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**CHIP.model_dump(), **change}.items()}))
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value) and said in str(error.value)
    path.write_text("- 1\n")
    with pytest.raises(UserError):
        read(path)


def test_the_page_says_what_every_key_means():
    text = (REPO / "docs" / "latency.md").read_text()
    said = set(re.findall(r"`(\w+)`", text[text.index("## A device that is not there yet") :]))
    assert set(Device.model_fields) - {"name"} <= said
    assert set(read(EXAMPLE).model_dump()) == set(Device.model_fields)
