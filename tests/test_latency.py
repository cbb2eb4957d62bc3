"""The latency model, fitted to made-up clocks whose truth is known, so that what it should find can be said."""

import json
from dataclasses import replace

import numpy as np
import pytest
from networks import random_network, shape_only

from gcp.cost import latency, sampling
from gcp.cost.analytic import macs
from gcp.cost.base import Budget, fit_to_measured_budget, minimum_widths
from gcp.cost.latency import Steps
from gcp.errors import UserError

STEPS = Steps(16, 8, {1: 3.0, 2: 3.0, 4: 2.0, 8: 1.5, 16: 1.0, 32: 1.0, 64: 1.0})
HEADER = {
    "format": sampling.SAMPLES,
    "setup": {"runtime": "mxnet", "device": "cpu", "dtype": "float32", "batch": 4, "threads": 1},
    "hardware": {"cpu": "a processor", "versions": {}, "date": "2026-01-01", "git_commit": None},
    "granularity": 16,
    "step": 8,
    "slowdowns": {str(g): s for g, s in STEPS.slowdowns.items()},
}


@pytest.fixture(scope="module")
def net():
    return shape_only("resnet18_v1b", (3, 64, 64))


def truth(net, odd=0.0):
    """Seconds: a call, work and traffic per layer; convs on 2x2 maps take `odd` more at odd multiples of 8."""
    layers = sampling.layers(net)

    def seconds(widths):
        total = 0.0
        for layer in layers:
            read, made = layer.widths(widths)
            pairs = made if layer.depthwise else read * made
            time = 2e-5 + 2e-11 * layer.taps * layer.sites * pairs + 1e-9 * layer.made_sites * made
            slow = "2x2>2x2" in layer.kind and made % 16 == 8
            total += time * (1 + odd * slow)
        return total

    return seconds


def samples(net, seconds, n, seed=0, noise=0.0):
    rng, layers, seen, lines = np.random.default_rng(seed), sampling.layers(net), {}, []
    allowed = sampling.choices(net.widths, 8)
    for number in range(n):
        widths = sampling.drawn(net.widths, allowed, layers, seen, np.random.default_rng((seed, number)))
        sampling.count(layers, widths, seen)
        lines.append(
            {
                "widths": list(widths.values()),
                "latency_s": seconds(widths) * rng.normal(1, noise),
                "reference_s": seconds(net.widths),
            }
        )
    header = {
        **HEADER,
        "network": net.name,
        "input": list(net.input_shape),
        "classes": net.n_classes,
        "sizes": net.widths,
    }
    return sampling.Samples("made up", header, lines)


@pytest.fixture(scope="module")
def fitted(net):
    return latency.fit(net, samples(net, truth(net, odd=1.0), 120, noise=0.005))


def test_a_made_up_clock_is_predicted_on_networks_that_were_not_sampled(net, fitted):
    result = latency.validate(fitted, net, samples(net, truth(net, odd=1.0), 40, seed=1))
    assert result["quality"]["table"]["nrmse"] < 0.02 and result["quality"]["table"]["tau"] > 0.97
    table, regression, macs = (result["quality"][k]["nrmse"] for k in ("table", "regression", "MACs"))
    assert table < regression < macs
    assert result["span"][0] < 0.3 and result["span"][1] > 1.2


def test_what_odd_widths_cost_is_found_where_they_cost(fitted):
    slow = [extra[1, 0] for kind, extra in fitted.extras.items() if "2x2>2x2" in kind]
    rest = [extra.max() for kind, extra in fitted.extras.items() if "2x2>2x2" not in kind and "dense" not in kind]
    # Two of the three kinds make the same channels, so only what they add together can be told.
    assert max(slow) > 0.5 and np.median(rest) < 0.1


def test_without_noise_the_regression_finds_the_coefficients(net):
    s = samples(net, truth(net), 60)
    found = latency.fit_regression(sampling.layers(net), s.widths, s.seconds)
    call, work, _, made, _ = found.coefficients["conv 3x3"]
    assert work == pytest.approx(2e-11, rel=0.02)
    assert found(sampling.layers(net), net.widths) == pytest.approx(truth(net)(net.widths), rel=1e-3)


def test_corners_are_bilinear():
    axes = (np.array([8, 16, 32]), np.array([16, 48]))
    values = np.add.outer(axes[0] * 2.0, axes[1] * 1.0).reshape(-1)

    def at(read, made):
        return sum(w * values[k] for k, w in latency._corners(axes, read, made))

    assert at(16, 48) == 80 and at(24, 32) == 80 and at(20, 16) == 56
    assert at(4, 8) == at(8, 16), "flat below"
    assert at(48, 80) == 176, "linear above"
    assert sum(w for _, w in latency._corners(axes, 40, 20)) == pytest.approx(1)


def test_widths_by_how_they_divide():
    assert [STEPS.rounded(w) for w in (1, 8, 9, 24)] == [8, 8, 16, 24]
    assert [STEPS.factor(w) for w in (8, 16, 12, 63)] == [1.0, 1.0, 2.0 / 1.5, 2.0]
    assert STEPS.flags(8 * 7) == (1.0, 1 / 7, 0.0, 1.0, 0.0), "odd, prime; 8 blocks divide well"
    assert STEPS.flags(8 * 13) == (1.0, 1 / 13, 0.0, 1.0, 1.0), "odd, prime; and 14 is twice a prime"
    assert STEPS.flags(8 * 14) == (0.0, 0.0, 1.0, 1.0, 0.0)
    assert STEPS.flags(8 * 15) == (1.0, 1 / 15, 0.0, 0.0, 0.0)
    assert STEPS.flags(8 * 4) == STEPS.flags(8 * 12) == (0.0,) * 5


def test_the_cost_adds_its_layers_and_a_channel_costs_the_slope_of_it(net, fitted):
    cost = fitted.cost(net)
    layers = sampling.layers(net)
    assert cost(net.widths) == pytest.approx(
        sum(fitted.layer(layer, *layer.widths(net.widths)) for layer in layers), rel=1e-12
    )
    group = "layers2_conv0"  # 128 channels
    widths = np.array([64, 80, 96, 112, 128])
    line = np.polyfit(widths, [cost({**net.widths, group: int(w)}) for w in widths], 1)
    assert cost.marginal(net.widths)[group] == pytest.approx(line[0])
    assert all(drop > 0 for drop in cost.marginal(dict.fromkeys(net.widths, 1)).values())


def test_a_layer_that_was_never_timed_is_predicted_by_its_operator(net, fitted):
    other = shape_only("resnet34_v1b", (3, 64, 64))
    cost = fitted.cost(other)
    assert all(fitted.knows(layer) for layer in sampling.layers(other)), "ResNet-34 repeats ResNet-18's layers"
    larger = shape_only("resnet18_v1b", (3, 96, 96))
    cost = fitted.cost(larger)
    assert not all(fitted.knows(layer) for layer in sampling.layers(larger))
    assert cost(larger.widths) == pytest.approx(truth(larger)(larger.widths), rel=0.1)
    with pytest.raises(UserError, match="has seen no 'depthwise 3x3', only conv 7x7"):
        mobile = shape_only("mobilenet1.0", (3, 64, 64))
        fitted.cost(mobile)(mobile.widths)


def test_a_depthwise_network_fits_too():
    net = shape_only("mobilenet0.5", (3, 64, 64))
    table = latency.fit(net, samples(net, truth(net), 60))
    result = latency.validate(table, net, samples(net, truth(net), 30, seed=1))
    assert result["quality"]["table"]["nrmse"] < 0.02


def test_saved_and_loaded_is_the_same_model(net, fitted, tmp_path):
    latency.save(fitted, tmp_path / "model.json")
    again = latency.load(tmp_path / "model.json")
    assert again.header == fitted.header and again.steps == fitted.steps
    for s in (0.3, 1.2):
        widths = {g: int(s * n) for g, n in net.widths.items()}
        assert again.cost(net)(widths) == fitted.cost(net)(widths)
    assert again.regression(sampling.layers(net), net.widths) == fitted.regression(sampling.layers(net), net.widths)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda raw: "{", "is no latency model"),
        (lambda raw: json.dumps({**raw, "format": "x"}), "another format"),
        (lambda raw: json.dumps({k: v for k, v in raw.items() if k != "setup"}), "'setup' is missing"),
        (
            lambda raw: json.dumps({**raw, "table": {k: {**t, "seconds": [1.0]} for k, t in raw["table"].items()}}),
            "another size than its axes",
        ),
    ],
)
def test_a_spoilt_file_is_refused(fitted, tmp_path, spoil, message):
    latency.save(fitted, tmp_path / "model.json")
    (tmp_path / "model.json").write_text(spoil(json.loads((tmp_path / "model.json").read_text())))
    with pytest.raises(UserError, match=message):
        latency.load(tmp_path / "model.json")


def test_too_few_samples_are_refused(net):
    with pytest.raises(UserError, match="19 networks are too few"):
        latency.fit(net, samples(net, truth(net), 19))


def test_quality_by_hand():
    found = latency.quality(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0]))
    assert found["rmse_s"] == pytest.approx(np.sqrt(5 / 3)) and found["nrmse"] == pytest.approx(np.sqrt(5 / 3) / 2)
    assert found["tau"] == pytest.approx(1 / 3)


def test_layers_timed_alone_are_compared_too(net, fitted):
    held = samples(net, truth(net, odd=1.0), 30, seed=2)
    shares = [truth(net, odd=1.0)(w) / fitted.header["reference_s"] for w in held.widths]
    assert latency.validate(fitted, net, held, shares)["quality"]["layers alone"]["nrmse"] < 1e-9


def test_the_clock_is_compared_with_itself(net, fitted):
    held = samples(net, truth(net, odd=1.0), 30, seed=2)
    again = replace(
        held,
        lines=[
            {**line, "latency_s": line["latency_s"] * 3, "reference_s": line["reference_s"] * 3} for line in held.lines
        ],
    )
    result = latency.validate(fitted, net, held, again=again)
    assert result["quality"]["clock again"]["nrmse"] < 1e-9, "a machine of a third of the speed is not noise"
    with pytest.raises(UserError, match="holds other networks"):
        latency.validate(fitted, net, held, again=samples(net, truth(net, odd=1.0), 30, seed=3))


# ---- a budget that the clock corrects --------------------------------------------------------------------------------


def budget_of(measure, target=0.5, cost=None):
    net = random_network("cifar_resnet20_v1")
    cost = cost or macs(net)
    return net, Budget(cost, cost(net.widths), target, 1, None, measure)


def halved(net):
    """Networks by the largest width of a group that keeps the MACs within an aim."""
    from gcp.graph.network import resized

    cost = macs(net)

    def choose(aim):
        for keep in range(64, 0, -1):
            widths = {g: min(n, max(1, n * keep // 64)) for g, n in net.widths.items()}
            if cost(widths) <= aim:
                return resized(net, widths)
        raise UserError("cannot be reached")

    return choose


def test_a_model_that_is_off_is_corrected_by_the_clock():
    net, budget = budget_of(lambda n: 1.25 * macs(n)(n.widths))
    found, rows = fit_to_measured_budget(budget, 0.5 * budget.original, halved(net))
    assert abs(rows[-1]["measured"] / 0.5 - 1) < 0.05 and len(rows) >= 2
    assert rows[0]["measured"] == pytest.approx(1.25 * rows[0]["predicted"])
    measured = 1.25 * macs(net)(found.widths) / budget.original
    assert min(abs(r["measured"] / 0.5 - 1) for r in rows) == abs(measured / 0.5 - 1)


def test_a_model_that_is_right_is_measured_once():
    net, budget = budget_of(None)
    _, rows = fit_to_measured_budget(budget, 0.5 * budget.original, halved(net))
    assert rows == []
    calls = []
    net, budget = budget_of(lambda n: calls.append(1) or 0.5 * budget.original)
    _, rows = fit_to_measured_budget(budget, 0.5 * budget.original, halved(net))
    assert len(calls) == len(rows) == 1


def test_a_correction_that_no_width_reaches_ends_with_the_nearest():
    net, budget = budget_of(lambda n: budget.original)  # nothing helps
    found, rows = fit_to_measured_budget(budget, 0.5 * budget.original, halved(net))
    assert found is not None and 1 <= len(rows) <= 5


def test_an_unreachable_latency_says_the_lowest(net, fitted):
    cost = fitted.cost(net)
    budget = Budget(cost, cost(net.widths), 0.001, 16, None, lambda n: 1.0)
    least = cost(minimum_widths(net.widths, 16))
    with pytest.raises(UserError, match=f"a latency of {1e3 * least:.3g} ms"):
        budget.check(net.widths)


def test_channels_can_be_weighed_by_another_cost_than_the_budget(net, fitted):
    budget = Budget(fitted.cost(net), 1.0, 0.5, 16, macs(net))
    assert budget.price.marginal(net.widths) == macs(net).marginal(net.widths)
    assert Budget(macs(net), 1.0, 0.5).price.marginal(net.widths) == macs(net).marginal(net.widths)
