"""The latency model, fitted to made-up clocks whose truth is known, so that what it should find can be said."""

import json
from dataclasses import replace

import numpy as np
import pytest
from networks import random_network, shape_only

from gcp.cost import latency, sampling
from gcp.cost.analytic import macs
from gcp.cost.base import Budget, minimum_widths
from gcp.cost.latency import Steps
from gcp.cost.layers import layers
from gcp.cost.measured import fit_to_measured_budget
from gcp.errors import UserError
from gcp.storage import read_json

STEPS = Steps(16, 8, {1: 3.0, 2: 3.0, 4: 2.0, 8: 1.5, 16: 1.0, 32: 1.0, 64: 1.0})
HEADER = {
    "format": "gcp latency samples 1",
    "setup": {"runtime": "mxnet", "device": "cpu", "dtype": "float32", "batch": 4, "threads": 1},
    "hardware": {"cpu": "a processor", "versions": {}, "date": "2026-01-01", "git_commit": None},
    "granularity": 16,
    "step": 8,
    "slowdowns": STEPS.slowdowns,
}


@pytest.fixture(scope="module")
def net():
    return shape_only("resnet18_v1b", (3, 64, 64))


def truth(net, odd=0.0):
    """Seconds: a call, work and traffic per layer; convs on 2x2 maps take `odd` more at odd multiples of 8."""
    kinds = layers(net)

    def seconds(widths):
        total = 0.0
        for layer in kinds:
            read, made = layer.widths(widths)
            pairs = made if layer.depthwise else read * made
            time = 2e-5 + 2e-11 * layer.kernel_size * layer.positions * pairs + 1e-9 * layer.out_positions * made
            slow = "2x2>2x2" in layer.kind and made % 16 == 8
            total += time * (1 + odd * slow)
        return total

    return seconds


def samples(net, seconds, n, seed=0, noise=0.0):
    rng, kinds, seen, lines = np.random.default_rng(seed), layers(net), {}, []
    allowed = sampling.choices(net.widths, 8)
    clock = {"spread": 0.0, "n": 7, "noisy": False, "attempts": 1, "reference_s": seconds(net.widths)}
    for number in range(n):
        widths = sampling.random_widths(net.widths, allowed, kinds, seen, np.random.default_rng((seed, number)))
        sampling.count_entries(kinds, widths, seen)
        latency_s = seconds(widths) * rng.normal(1, noise)
        lines.append(sampling.Sample(widths=list(widths.values()), latency_s=latency_s, **clock))
    subject = {"network": net.name, "input": net.input_shape, "classes": net.n_classes, "sizes": net.widths}
    return sampling.Samples("made up", sampling.Header.model_validate({**HEADER, **subject}), lines)


@pytest.fixture(scope="module")
def fitted(net):
    """A model of few samples, its penalties not chosen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SMOOTHNESS", (10.0,))
        patch.setattr(latency, "MONOTONICITY", (1.0,))
        return latency.fit(net, samples(net, truth(net, odd=1.0), 40))


def test_beyond_what_was_timed_a_layer_never_gets_faster(net, fitted):
    """Straight lines through noisy entries can fall, below zero in the end; the regression does not."""
    assert fitted.cost(net)(net.widths) == pytest.approx(truth(net, odd=1.0)(net.widths), rel=0.1)
    for layer in layers(net):
        (read, made), _ = fitted.table[layer.kind].arrays
        at = [(int(read[-1] * part), int(made[-1] * part) or int(read[-1] * part)) for part in (1.0, 1.5, 2.0, 4.0)]
        if not layer.inputs.per_unit:
            at = [(int(read[-1]), n) for _, n in at]
        if not layer.outputs.per_unit:
            at = [(n, int(made[-1])) for n, _ in at]
        seconds = [fitted.layer(layer, n_in // 32 * 32 or n_in, n_out // 32 * 32 or n_out) for n_in, n_out in at]
        assert seconds == sorted(seconds) and seconds[0] >= 0


@pytest.fixture(scope="module")
def fitted_well(net):
    return latency.fit(net, samples(net, truth(net, odd=1.0), 120, noise=0.005))


@pytest.mark.slow
def test_a_made_up_clock_is_predicted_on_networks_that_were_not_sampled(net, fitted_well):
    result = latency.validate(fitted_well, net, samples(net, truth(net, odd=1.0), 40, seed=1))
    assert result.quality["table"].nrmse < 0.02 and result.quality["table"].tau > 0.97
    table, regression, macs = (result.quality[k].nrmse for k in ("table", "regression", "MACs"))
    assert table < regression < macs
    assert result.span[0] < 0.3 and result.span[1] > 1.2


@pytest.mark.slow
def test_what_odd_widths_cost_is_found_where_they_cost(fitted_well):
    slow = [extra[1][0] for kind, extra in fitted_well.extras.items() if "2x2>2x2" in kind]
    rest = [
        np.max(extra) for kind, extra in fitted_well.extras.items() if "2x2>2x2" not in kind and "dense" not in kind
    ]
    # Two of the three kinds make the same channels, so only what they add together can be told.
    assert max(slow) > 0.5 and np.median(rest) < 0.1


def test_without_noise_the_regression_finds_the_coefficients(net):
    s = samples(net, truth(net), 60)
    found = latency.fit_regression(layers(net), s.widths, s.seconds)
    call, work, _, made, _ = found.seconds["conv 3x3"]
    assert work == pytest.approx(2e-11, rel=0.02)
    assert found(layers(net), net.widths) == pytest.approx(truth(net)(net.widths), rel=1e-3)


def test_corners_are_bilinear():
    axes = (np.array([8, 16, 32]), np.array([16, 48]))
    values = np.add.outer(axes[0] * 2.0, axes[1] * 1.0).reshape(-1)

    def at(read, made):
        index, share = latency._corners(axes, np.array(read), np.array(made))
        return (share * values[index]).sum()

    assert at(16, 48) == 80 and at(24, 32) == 80 and at(20, 16) == 56
    assert at(4, 8) == at(8, 16), "flat below"
    assert at(48, 80) == 176, "linear above"
    assert latency._corners(axes, np.array(40), np.array(20))[1].sum() == pytest.approx(1)


def test_widths_by_how_they_divide():
    assert STEPS.rounded(np.array([1, 8, 9, 24])).tolist() == [8, 8, 16, 24]
    assert STEPS.factor(np.array([8, 16, 12, 63])).tolist() == [1.0, 1.0, 2.0 / 1.5, 2.0]
    assert STEPS.flags(8 * np.array([7, 13, 14, 15, 4, 12])).tolist() == [
        [1.0, 1 / 7, 0.0, 1.0, 0.0],  # odd, prime; 8 blocks divide well
        [1.0, 1 / 13, 0.0, 1.0, 1.0],  # odd, prime; and 14 is twice a prime
        [0.0, 0.0, 1.0, 1.0, 0.0],
        [1.0, 1 / 15, 0.0, 0.0, 0.0],
        [0.0] * 5,
        [0.0] * 5,
    ]


@pytest.mark.slow
def test_the_cost_adds_its_layers_and_a_channel_costs_the_slope_of_it(net, fitted):
    cost = fitted.cost(net)
    kinds = layers(net)
    assert cost(net.widths) == pytest.approx(
        sum(fitted.layer(layer, *layer.widths(net.widths)) for layer in kinds), rel=1e-12
    )
    group = "layers2_conv0"  # 128 channels
    widths = np.array([64, 80, 96, 112, 128])
    line = np.polyfit(widths, [cost({**net.widths, group: int(w)}) for w in widths], 1)
    assert cost.marginal(net.widths)[group] == pytest.approx(line[0])
    assert all(drop > 0 for drop in cost.marginal(dict.fromkeys(net.widths, 1)).values())


def test_a_layer_that_was_never_timed_is_predicted_by_its_operator(net, fitted):
    other = shape_only("resnet34_v1b", (3, 64, 64))
    cost = fitted.cost(other)
    assert all(fitted.knows(layer) for layer in layers(other)), "ResNet-34 repeats ResNet-18's layers"
    larger = shape_only("resnet18_v1b", (3, 96, 96))
    cost = fitted.cost(larger)
    assert not all(fitted.knows(layer) for layer in layers(larger))
    assert cost(larger.widths) == pytest.approx(truth(larger)(larger.widths), rel=0.1)
    with pytest.raises(UserError, match="has seen no 'depthwise 3x3', only conv 7x7"):
        mobile = shape_only("mobilenet1.0", (3, 64, 64))
        fitted.cost(mobile)(mobile.widths)


@pytest.mark.slow
def test_a_depthwise_network_fits_too():
    net = shape_only("mobilenet0.5", (3, 64, 64))
    table = latency.fit(net, samples(net, truth(net), 60))
    result = latency.validate(table, net, samples(net, truth(net), 30, seed=1))
    assert result.quality["table"].nrmse < 0.02


def test_saved_and_loaded_is_the_same_model(net, fitted, tmp_path):
    latency.save(fitted, tmp_path / "model.json")
    again = latency.load(tmp_path / "model.json")
    assert again == fitted
    for s in (0.3, 1.2):
        widths = {g: int(s * n) for g, n in net.widths.items()}
        assert again.cost(net)(widths) == fitted.cost(net)(widths)
    assert again.regression(layers(net), net.widths) == fitted.regression(layers(net), net.widths)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda raw: "{", "not valid JSON"),
        (lambda raw: json.dumps({**raw, "format": "x"}), "format"),
        (lambda raw: json.dumps({k: v for k, v in raw.items() if k != "setup"}), "setup"),
        (
            lambda raw: json.dumps({**raw, "table": {k: {**t, "seconds": [[1.0]]} for k, t in raw["table"].items()}}),
            "rows of",
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
    assert found.rmse_s == pytest.approx(np.sqrt(5 / 3)) and found.nrmse == pytest.approx(np.sqrt(5 / 3) / 2)
    assert found.tau == pytest.approx(1 / 3)


@pytest.mark.slow
def test_layers_timed_alone_are_compared_too(net, fitted):
    held = samples(net, truth(net, odd=1.0), 30, seed=2)
    shares = [truth(net, odd=1.0)(w) / fitted.reference_s for w in held.widths]
    assert latency.validate(fitted, net, held, shares).quality["layers alone"].nrmse < 1e-9


@pytest.mark.slow
def test_the_clock_is_compared_with_itself(net, fitted):
    held = samples(net, truth(net, odd=1.0), 30, seed=2)
    slower = [
        line.model_copy(update={"latency_s": 3 * line.latency_s, "reference_s": 3 * line.reference_s})
        for line in held.lines
    ]
    again = replace(held, lines=slower)
    result = latency.validate(fitted, net, held, again=again)
    assert result.quality["repeat measurement"].nrmse < 1e-9, "a machine of a third of the speed is not noise"
    with pytest.raises(UserError, match="does not hold the same networks"):
        latency.validate(fitted, net, held, again=samples(net, truth(net, odd=1.0), 30, seed=3))


# ---- files that somebody has touched ---------------------------------------------------------------------------------

DROPPED = object()
WRONG = (DROPPED, None, -1, 0, -0.5, 1e308, 10**30, float("nan"), "text", "", True, [], {}, [[[[1]]]], {"a": {"b": 1}})


def places(value, at=()):
    """Where something can be changed in a JSON value; of long lists of numbers only the ends."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:3] + list(items)[-3:] if isinstance(value, list) else items:
        yield (*at, key)
        yield from places(item, (*at, key))


def changed(value, place, wrong):
    """A copy of a JSON value with something wrong in one place."""
    copy = inside = value.copy()
    for key in place[:-1]:
        inside[key] = inside = inside[key].copy()
    if wrong is DROPPED:
        del inside[place[-1]]
    else:
        inside[place[-1]] = wrong
    return json.dumps(copy)


@pytest.mark.parametrize("n", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_model_that_somebody_touched_is_refused_or_prices_to_seconds(net, fitted, tmp_path, n):
    latency.save(fitted, tmp_path / "model.json")
    raw, rng, path = (
        json.loads((tmp_path / "model.json").read_text()),
        np.random.default_rng(n),
        tmp_path / "touched.json",
    )
    everywhere, n_refused = sorted(places(raw), key=str), 0
    for _ in range(n):
        place = everywhere[rng.integers(len(everywhere))]
        path.write_text(changed(raw, place, WRONG[rng.integers(len(WRONG))]))
        try:
            cost = latency.load(path).cost(net)
        except UserError as error:
            assert str(error).startswith(str(path)) or "latency model" in str(error)
            n_refused += 1
            continue
        for share in (0.1, 0.5, 1.0):
            seconds = cost({g: max(1, int(share * width)) for g, width in net.widths.items()})
            assert 0 < seconds < np.inf, (place, seconds)
        assert all(0 < price < np.inf for price in cost.marginal(net.widths).values())
    assert n_refused > 0.7 * n, "nearly everything in a model counts"


@pytest.mark.parametrize("n", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_samples_and_validations_that_somebody_touched_are_refused_or_fit(net, fitted, tmp_path, n):
    held, path, rng = samples(net, truth(net), 3), tmp_path / "touched", np.random.default_rng(n)
    result = latency.validate(fitted, net, held).model_dump(mode="json")
    header, line = held.header.model_dump(mode="json"), held.lines[0].model_dump(mode="json")
    for kind, values in (("header", header), ("line", line), ("validation", result)):
        everywhere = sorted(places(values), key=str)
        for _ in range(n):
            text = changed(values, everywhere[rng.integers(len(everywhere))], WRONG[rng.integers(len(WRONG))])
            path.write_text({"header": text, "line": f"{json.dumps(header)}\n{text}\n", "validation": text}[kind])
            try:
                if kind == "validation":
                    read_json(path, latency.Validation)
                else:
                    assert np.isfinite(sampling.read_samples(path).seconds).all()
            except UserError as error:
                assert str(error).startswith(str(path))


# ---- a budget that the clock corrects --------------------------------------------------------------------------------


def budget_of(measure, target=0.5, cost=None):
    net = random_network("cifar_resnet20_v1")
    cost = cost or macs(net)
    return net, Budget(cost, cost(net.widths), target, 1, None, measure)


def halved(net):
    """Networks by the largest width of a group that keeps the MACs within an aim."""
    from gcp.graph.surgery import resized

    cost = macs(net)

    def choose(aim):
        for keep in range(64, 0, -1):
            widths = {g: min(n, max(1, n * keep // 64)) for g, n in net.widths.items()}
            if cost(widths) <= aim:
                return resized(net, widths)
        raise UserError("cannot be reached")

    return choose


def test_a_model_that_is_off_is_corrected_by_the_clock():
    net, budget = budget_of(lambda n, limit: (1.25 * macs(n)(n.widths), 0.0))
    found, rows = fit_to_measured_budget(budget, 0.5 * budget.original, halved(net))
    assert abs(rows[-1]["measured"] / 0.5 - 1) < 0.05 and len(rows) >= 2
    assert rows[0]["measured"] == pytest.approx(1.25 * rows[0]["predicted"])
    measured = 1.25 * macs(net)(found.widths) / budget.original
    assert min(abs(r["measured"] / 0.5 - 1) for r in rows) == abs(measured / 0.5 - 1)


def test_a_model_that_is_right_is_only_confirmed():
    net, budget = budget_of(None)
    _, rows = fit_to_measured_budget(budget, 0.5 * budget.original, halved(net))
    assert rows == []
    calls = []
    net, budget = budget_of(lambda n, limit: calls.append(n.widths) or (0.5 * budget.original, 0.0))
    _, rows = fit_to_measured_budget(budget, 0.5 * budget.original, halved(net))
    assert len(calls) == len(rows) == 2 and calls[0] == calls[1]


def test_a_correction_that_no_width_reaches_ends_with_the_nearest():
    net, budget = budget_of(lambda n, limit: (budget.original, 0.0))  # nothing helps
    found, rows = fit_to_measured_budget(budget, 0.5 * budget.original, halved(net))
    assert found is not None and 1 <= len(rows) <= 7


def test_an_unreachable_latency_says_the_lowest(net, fitted):
    cost = fitted.cost(net)
    budget = Budget(cost, cost(net.widths), 0.001, 16, None, lambda n, limit: (1.0, 0.0))
    least = cost(minimum_widths(net.widths, 16))
    with pytest.raises(UserError, match=f"a latency of {1e3 * least:.3g} ms"):
        budget.check(net.widths)


def test_channels_can_be_weighed_by_another_cost_than_the_budget(net, fitted):
    budget = Budget(fitted.cost(net), 1.0, 0.5, 16, macs(net))
    assert budget.price.marginal(net.widths) == macs(net).marginal(net.widths)
    assert Budget(macs(net), 1.0, 0.5).price.marginal(net.widths) == macs(net).marginal(net.widths)
