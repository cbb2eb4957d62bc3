"""Which networks are timed for a latency model, and the files of what was measured; the clock is made up here."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from networks import random_network, shape_only

from gcp.backend import clock
from gcp.backend.blocks import predict
from gcp.cost import sampling
from gcp.cost.analytic import macs
from gcp.cost.layers import alone, layers
from gcp.errors import UserError
from gcp.graph.surgery import resized

SETUP = {"runtime": "mxnet", "device": "cpu", "dtype": "float32", "batch": 1, "threads": 1}
HARDWARE = {"cpu": "a processor", "versions": {}, "date": "2026-01-01", "git_commit": None}
NAMES = ["resnet18_v1b", "resnet50_v1d", "resnet18_v2", "mobilenet1.0", "mobilenetv2_1.0", "vgg16_bn"]


class Clock:
    """Seconds proportional to MACs, slower at widths that are no multiples of 8; counts its calls."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = [], fail_at

    def __call__(self, net):
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(net.widths)
        slow = 2.0 if any(w % 8 for w in net.widths.values()) else 1.0
        return {
            "latency_s": slow * macs(net)(net.widths) * 1e-9,
            "spread": 0.01,
            "n": 7,
            "noisy": False,
            "attempts": 1,
        }, 0.5


@pytest.fixture(scope="module")
def net():
    return random_network("cifar_resnet20_v1")


@pytest.mark.parametrize("name", NAMES)
def test_layers_have_all_macs_of_the_network(name):
    net = shape_only(name)
    widths = {g: n + 3 * k for k, (g, n) in enumerate(net.widths.items())}
    total = 0
    for layer in layers(net):
        read, made = layer.widths(widths)
        total += layer.kernel_size * layer.positions * (made if layer.depthwise else read * made)
    assert total == macs(net)(widths)


def test_layers_of_one_kind_do_the_same_work():
    kinds = layers(shape_only("resnet18_v1b"))
    assert len(kinds) == 21 and len({layer.kind for layer in kinds}) == 17  # stage 1 repeats its block, 2 to 4 do not
    first, again = kinds[1], kinds[3]
    assert first.kind == again.kind == "conv 3x3 56x56>56x56 + BatchNorm, Activation relu"
    assert (kinds[0].inputs, kinds[-1].outputs) == ((3, {}), (1000, {})) and kinds[1].inputs == (0, {"conv0": 1})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_resized_network_has_the_widths_asked_for_and_runs(name):
    net = shape_only(name, (3, 32, 32))
    for factor in (0.4, 1.3):
        widths = {g: max(1, int(factor * n)) for g, n in net.widths.items()}
        other = resized(net, widths)
        assert other.widths == widths and macs(other)(widths) == macs(net)(widths)
        if name not in ("resnet50_v1d", "vgg16_bn"):  # seconds
            assert np.isfinite(predict(other, np.zeros((1, 3, 32, 32), np.float32))).all()


def test_a_layer_alone_computes_what_it_computes_in_the_network(net):
    """The last block's second conv reads what its first makes; alone, its addition adds its own value."""
    layer = next(layer for layer in layers(net) if layer.kind.endswith("+ BatchNorm, Activation relu"))
    one = alone(net, layer)
    x = np.random.default_rng(0).normal(size=(2,) + one.input_shape).astype(np.float32)
    w = net.arrays[layer.name + "_weight"]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    conv = np.einsum("nchwij,ocij->nohw", windows, w, optimize=True)
    norm = layer.name.replace("conv", "batchnorm")
    a = {k: net.arrays[f"{norm}_{k}"][:, None, None] for k in ("gamma", "beta", "running_mean", "running_var")}
    expected = np.maximum((conv - a["running_mean"]) / np.sqrt(a["running_var"] + 1e-5) * a["gamma"] + a["beta"], 0)
    assert np.abs(predict(one, x) - expected).max() < 1e-4 * np.abs(expected).max()


def test_every_layer_runs_alone(net):
    for layer in layers(net):
        one = alone(net, layer)
        assert predict(one, np.ones((1,) + one.input_shape, np.float32)).shape[1] == layer.outputs(net.widths)


def test_slowdowns_are_recovered_from_times():
    slow = {1: 3.0, 2: 3.0, 4: 2.0, 8: 1.3, 16: 1.0, 32: 1.0, 64: 1.0}
    probes = [(g, cost, slow[g] * 1e-9 * cost**0.8) for g in slow for cost in (1e6 * (1 + g), 3e6 * (1 + g))]
    found = sampling.slowdowns_of(probes)
    assert found == pytest.approx(slow)
    assert sampling.granularity(found) == 16
    assert sampling.granularity({**found, 8: 1.1}) == 8
    assert sampling.granularity({**found, 8: 1.0, 16: 1.5}) == 32, "8 does not help where 16 is slow"


def test_the_step_is_half_the_granularity_where_that_is_worth_it():
    slow = {1: 3.0, 2: 3.0, 4: 2.0, 8: 1.3, 16: 1.0, 32: 1.0, 64: 1.0}
    assert sampling.step_of(slow) == 8
    assert sampling.step_of({**slow, 8: 1.6}) == 16
    assert sampling.step_of(dict.fromkeys(slow, 1.0)) == 1


def test_probes_are_odd_multiples_about_the_networks_own_size():
    sizes = {"a": 64, "b": 512}
    for g, widths in sampling.granularity_probes(sizes):
        assert all(w % g == 0 and w // g % 2 == 1 for w in widths.values())
    below, above = [w for g, w in sampling.granularity_probes(sizes) if g == 8]
    assert (below, above) == ({"a": 40, "b": 376}, {"a": 56, "b": 392})


@pytest.mark.slow
def test_a_killed_sampling_goes_on_as_if_it_had_not_been(net, tmp_path):
    whole = sampling.sample(net, tmp_path / "whole", SETUP, HARDWARE, Clock(), 12)
    probes = len(sampling.granularity_probes(net.widths)) * 3
    with pytest.raises(KeyboardInterrupt):
        sampling.sample(net, tmp_path / "cut", SETUP, HARDWARE, Clock(fail_at=probes + 5), 12)
    with open(tmp_path / "cut", "a") as file:
        file.write('{"widths": [16, 1')  # the kill came within a line
    clock = Clock()
    again = sampling.sample(net, tmp_path / "cut", SETUP, HARDWARE, clock, 12)
    assert len(clock.calls) == 7 and [line.model_copy(update={"took_s": 0.0}) for line in again.lines] == [
        line.model_copy(update={"took_s": 0.0}) for line in whole.lines
    ]
    headers = [(tmp_path / name).read_text().splitlines()[0] for name in ("cut", "whole")]
    assert headers[0] == headers[1]
    (tmp_path / "new").write_text('{"format": "gcp lat')  # the kill came within the header
    again = sampling.sample(net, tmp_path / "new", SETUP, HARDWARE, Clock(), 12)
    assert [line.widths for line in again.lines] == [line.widths for line in whole.lines]


@pytest.mark.slow
def test_samples_are_multiples_of_the_step_and_spread(net, tmp_path):
    held = sampling.sample(net, tmp_path / "s", SETUP, HARDWARE, Clock(), 60)
    step, sizes = held.header.step, net.widths
    assert (held.header.granularity, step) == (8, 8), "multiples of 4 take twice as long"
    assert all(w % step == 0 and w <= 1.5 * sizes[g] for widths in held.widths for g, w in widths.items())
    costs = np.array([macs(net)(w) for w in held.widths]) / macs(net)(sizes)
    assert costs.min() < 0.15 and costs.max() > 1.2 and 0.4 < np.median(costs) < 1.0
    assert len({tuple(w.values()) for w in held.widths}) == 60


def test_rare_entries_are_favoured(net):
    kinds, sizes = layers(net), net.widths
    allowed = sampling.choices(sizes, 4)

    def n_entries(n_candidates):
        seen = {}
        for number in range(30):
            widths = sampling.random_widths(sizes, allowed, kinds, seen, np.random.default_rng(number), n_candidates)
            sampling.count_entries(kinds, widths, seen)
        return len(seen)

    assert n_entries(24) > n_entries(1)


def test_drift_is_taken_out_of_the_seconds(tmp_path):
    speed = [1.0] * 40 + [1.5] * 40
    timed = {"spread": 0.0, "n": 1, "noisy": False, "attempts": 1}
    lines = [sampling.Sample(widths=[1], latency_s=2.0 * s, reference_s=s, **timed) for s in speed]
    samples = sampling.Samples(tmp_path, SimpleNamespace(in_turns=False), lines)
    assert samples.seconds == pytest.approx(2.5)  # at the median speed of 1.25
    lines[60] = lines[60].model_copy(update={"reference_s": 9.0})  # of a reference now and then, the noise stays out
    assert samples.seconds == pytest.approx(samples.seconds[0])


def test_a_speed_that_changes_from_one_network_to_the_next_is_taken_out_of_the_seconds(tmp_path):
    speed, timed = [1.0, 1.3] * 8 + [1.0], {"spread": 0.0, "n": 1, "noisy": False, "attempts": 1}
    lines = [sampling.Sample(widths=[1], latency_s=2.0 * s, reference_s=s, **timed) for s in speed]
    samples = sampling.Samples(tmp_path, SimpleNamespace(in_turns=True), lines)
    assert samples.seconds == pytest.approx(2.0)


@pytest.mark.slow
def test_a_bad_line_is_named_and_can_be_left_out(net, tmp_path):
    path = tmp_path / "s"
    sampling.sample(net, path, SETUP, HARDWARE, Clock(), 3)
    lines = path.read_text().splitlines()
    for bad in (
        '{"widths": [1, 2]',
        '{"widths": [1], "latency_s": 1.0, "reference_s": 1.0}',
        "[]",
        lines[2].replace('"latency_s": ', '"latency_s": -'),
    ):
        path.write_text("\n".join([*lines[:2], bad, *lines[3:]]) + "\n")
        with pytest.raises(UserError, match="line 3: "):
            sampling.read_samples(path)
        said = []
        assert len(sampling.read_samples(path, skip_bad=True, warn=said.append).lines) == 2
        assert len(said) == 1 and "line 3" in said[0]


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"format": "gcp latency samples 1", "sizes": 3}'])
def test_a_file_without_a_header_is_refused(tmp_path, text):
    (tmp_path / "s").write_text(text)
    with pytest.raises(UserError, match="line 1: not a header"):
        sampling.read_samples(tmp_path / "s")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed, message",
    [
        ({"setup": {**SETUP, "batch": 2}}, "batch 1 and batch 2"),
        ({"setup": {**SETUP, "runtime": "onnxruntime"}}, "runtime 'mxnet' and runtime 'onnxruntime'"),
        ({"hardware": {**HARDWARE, "cpu": "another"}}, "processor 'a processor' and processor 'another'"),
    ],
)
def test_samples_of_something_else_are_not_mixed(net, tmp_path, changed, message):
    sampling.sample(net, tmp_path / "s", SETUP, HARDWARE, Clock(), 1)
    now = {"setup": SETUP, "hardware": HARDWARE, **changed}
    with pytest.raises(UserError, match=message):
        sampling.sample(net, tmp_path / "s", now["setup"], now["hardware"], Clock(), 2)


@pytest.mark.slow
def test_samples_of_another_network_are_not_mixed(net, tmp_path):
    sampling.sample(net, tmp_path / "s", SETUP, HARDWARE, Clock(), 1)
    with pytest.raises(UserError, match="network 'cifar_resnet20_v1' and network 'resnet18_v1b'"):
        sampling.sample(shape_only("resnet18_v1b"), tmp_path / "s", SETUP, HARDWARE, Clock(), 2)


def test_layers_alone_are_timed_once_each_and_kept(net, tmp_path):
    sampled, networks = sampling.Sampled(net), [(net.widths, {}), (net.widths, {})]
    clock = Clock()
    shares = sampling.layers_alone(sampled, networks, tmp_path / "l", clock)
    kinds = {(layer.kind, *layer.widths(net.widths)) for layer in layers(net)}
    assert len(clock.calls) == len(kinds) < len(layers(net))
    assert shares[0] == shares[1] == pytest.approx(macs(net)(net.widths) * 1e-9 / 0.5)
    again = Clock()
    assert sampling.layers_alone(sampled, networks, tmp_path / "l", again) == shares and not again.calls
    assert len((tmp_path / "l").read_text().splitlines()) == len(kinds)
    assert all(json.loads(line)["latency_s"] > 0 for line in (tmp_path / "l").read_text().splitlines())


@pytest.mark.slow
def test_a_processor_that_an_older_file_does_not_tell_is_matched_by_name_and_said(net, tmp_path):
    """Which of the processors of one name it was is only compared where both files say."""
    known = {**HARDWARE, "cpu_model": "family 1"}
    sampling.sample(net, tmp_path / "old", SETUP, HARDWARE, Clock(), 1)
    said = []
    sampling.sample(net, tmp_path / "old", SETUP, known, Clock(), 2, warn=said.append)
    assert len(said) == 1 and "not fully known" in said[0]
    said.clear()
    sampling.sample(net, tmp_path / "new", SETUP, known, Clock(), 1, warn=said.append)
    sampling.sample(net, tmp_path / "new", SETUP, known, Clock(), 2, warn=said.append)
    assert said == []
    with pytest.raises(UserError, match="processor 'family 1' and processor 'family 2'"):
        sampling.sample(net, tmp_path / "new", SETUP, {**known, "cpu_model": "family 2"}, Clock(), 2)


@pytest.mark.slow
def test_two_processes_on_one_file_take_one_after_the_other(net, tmp_path):
    """The second waits for the first and then has nothing left to do: no network is there twice."""

    def sampled():
        return sampling.sample(net, tmp_path / "s", SETUP, HARDWARE, Clock(), 6).lines

    with ThreadPoolExecutor(2) as both:
        first, second = (both.submit(sampled) for _ in range(2))
    assert first.result() == second.result() == sampling.read_samples(tmp_path / "s").lines
    assert len(first.result()) == 6 and len({tuple(line.widths) for line in first.result()}) == 6


def test_a_header_has_the_keys_of_a_setup():
    assert set(sampling.Setup.model_fields) == set(clock.Setup().as_json())


def test_a_bad_line_of_layers_is_named(net, tmp_path):
    (tmp_path / "l").write_text('{"kind": "conv", "read": 1, "made": 1, "latency_s": 1.0}\n')
    with pytest.raises(UserError, match="/l: line 1: "):
        sampling.layers_alone(sampling.Sampled(net), [(net.widths, {})], tmp_path / "l", Clock())
