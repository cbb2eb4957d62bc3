"""Architecture search: spaces and their prices against real networks, qualities, solvers, patterns, and bad input."""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import images, random_network
from pydantic import ValidationError
from scipy import stats
from test_experiment import TINY, finish, script
from test_prune import Noise

from gcp.backend.blocks import predict
from gcp.cost import latency, sampling
from gcp.cost.analytic import macs, params
from gcp.cost.base import Budget
from gcp.cost.device import DeviceOptions, device_time
from gcp.cost.memory import peak_memory
from gcp.errors import UserError
from gcp.experiment import architecture_search, config
from gcp.methods.architecture import ArchitectureOptions, Clock, LimitOptions, architecture, limits_of, space_of
from gcp.methods.base import Problem
from gcp.report import checks
from gcp.search import candidates, patterns, zero_shot
from gcp.search.exploration import SOLVERS, EvolutionOptions, Limit, Question, check
from gcp.search.quality import QUALITIES, SupernetOptions, additive
from gcp.search.space import SampledSpace, Space, SpaceOptions
from gcp.storage import locked
from gcp.train.tasks import CLASSIFICATION

REPO = Path(__file__).resolve().parents[1]
ALL = {
    "widths": {"*": (0.5, 1.0, 1.5)},
    "blocks": {"*": ("plain", "fused", "full")},
    "kernels": {"*conv1": (3, 5)},
    "drop": ("*",),
}


def some(**options):
    return SpaceOptions.model_validate(options)


@pytest.fixture(scope="module")
def net():
    return random_network("mobilenetv2_0.25", (3, 32, 32), 5)


@pytest.fixture(scope="module")
def space(net):
    """All kinds of decisions about three blocks, of which one can be left out."""
    part = "features_linearbottleneck[345]_*"
    blocks = {f"{part}conv1": ("plain", "fused", "full")}
    return Space(net, some(widths={part: (0.5, 1.0)}, blocks=blocks, kernels={f"{part}conv1": (3, 5)}, drop=(part,)), 2)


# ---- spaces and prices


def test_decisions_are_what_was_declared(net, space):
    assert set(space.decisions["block:features_linearbottleneck3_conv1"]) == {"plain", "fused", "full"}
    assert space.decisions["kernel:features_linearbottleneck4_conv1"] == (3, 5)
    assert "drop:features_linearbottleneck3_elemwise_add0" not in space.own  # its shortcut is no shortcut
    assert space.decisions["drop:features_linearbottleneck4_elemwise_add0"] == (False, True)
    assert space.decisions["width:features_linearbottleneck3_conv0"] == (18, 36)
    assert space.n_architectures == np.prod(space.sizes.astype(float))
    own = space.levels({})
    assert space.pattern(own) == {name: space.own[name] for name in space.decisions}
    assert np.allclose(predict(space.rewritten(space.pattern(own)), images(net)), predict(net, images(net)))


def test_a_single_value_is_not_searched_but_holds(net):
    """One group has half of its width, and one all of it, whatever multiplier is chosen for the others."""
    halved, whole = "features_linearbottleneck3_conv0", "features_linearbottleneck4_conv0"
    space = Space(net, some(multipliers=(0.5, 1.0), widths={halved: (0.5,), whole: (1.0,)}), 4)
    assert list(space.decisions) == ["multiplier"]
    for level, price in zip([[0], [1]], space.price(macs)(np.array([[0], [1]]))):
        small = space.network(space.pattern(np.array(level)))
        assert small.widths[halved] == space.rounded(0.5, net.widths[halved]) < net.widths[halved]
        assert small.widths[whole] == net.widths[whole]
        assert macs(small)(small.widths) == pytest.approx(price, rel=1e-12)
    fused = Space(net, some(blocks={"features_linearbottleneck3_conv1": ("fused",)}))
    assert not fused.decisions and fused.fixed == {"block:features_linearbottleneck3_conv1": "fused"}


@pytest.mark.slow
@pytest.mark.parametrize("cost", [macs, params, peak_memory, zero_shot.entropy])
def test_a_price_is_what_the_rewritten_network_costs(space, cost):
    priced, levels = space.price(cost), space.random(12, np.random.default_rng(0))
    for level, price in zip(levels, priced(levels)):
        small = space.network(space.pattern(level))
        assert cost(small)(small.widths) == pytest.approx(price, rel=1e-12)
        at = tuple(map(int, level))
        assert priced.cost()(dict(zip(space.names, at))) == pytest.approx(price, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar_resnet20_v1", "mobilenet0.25", "densenet121", "squeezenet1.1"])
def test_prices_of_other_networks_with_a_multiplier(name):
    side = {"densenet121": 224, "squeezenet1.1": 224}.get(name, 32)
    of = random_network(name, (3, side, side), 5)
    options = {"multipliers": (0.25, 0.5, 1.0)} | ({"drop": ("*",)} if name.startswith("cifar") else {})
    space = Space(of, some(**options), 4)
    for cost in (macs, params, peak_memory):
        levels = space.random(4, np.random.default_rng(0))
        for level, price in zip(levels, space.price(cost)(levels)):
            small = space.network(space.pattern(level))
            assert cost(small)(small.widths) == pytest.approx(price, rel=1e-12)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_space_of_mobilenetv2_is_priced_right(data):
    net = random_network("mobilenetv2_0.25", (3, 32, 32), 5)
    kinds = data.draw(st.lists(st.sampled_from(sorted(ALL)), min_size=1, unique=True))
    space = Space(net, some(**{kind: ALL[kind] for kind in kinds}), data.draw(st.sampled_from([1, 4, 8])))
    cost = data.draw(st.sampled_from([macs, params, peak_memory]))
    levels = space.random(3, np.random.default_rng(data.draw(st.integers(0, 100))))
    for level, price in zip(levels, space.price(cost)(levels)):
        small = space.network(space.pattern(level))
        assert cost(small)(small.widths) == pytest.approx(price, rel=1e-12)


@pytest.mark.slow
def test_a_device_and_a_latency_model_price_blocks_too(space):
    cost = lambda net: device_time(net, DeviceOptions(device=str(REPO / "configs" / "device.yaml")))  # noqa: E731
    levels = space.random(6, np.random.default_rng(1))
    for level, price in zip(levels, space.price(cost)(levels)):
        small = space.network(space.pattern(level))
        assert cost(small)(small.widths) == pytest.approx(price, rel=1e-9)


@pytest.mark.slow
def test_random_architectures_of_one_cost(space, net):
    priced, whole = space.price(macs), macs(net)(net.widths)
    found = space.random_at(priced, 0.9 * whole, 1.1 * whole, 20, np.random.default_rng(0))
    assert len(found) == 20 and (abs(priced(found) / whole - 1) <= 0.1).all()
    with pytest.raises(UserError) as error:
        space.random_at(priced, 0, 1, 1, np.random.default_rng(0), 5000)
    assert error.value.key == "space.cost"


def test_what_a_dropped_block_would_be_is_no_matter(space):
    dropped = {"drop:features_linearbottleneck4_elemwise_add0": True}
    fused = {"block:features_linearbottleneck4_conv1": "fused"}
    assert candidates.identity(space, dropped) == candidates.identity(space, {**dropped, **fused})
    assert candidates.identity(space, {}) != candidates.identity(space, fused)
    assert patterns.of(space, {**dropped, **fused}).decisions == dropped


# ---- latency models of spaces


def seconds_of(net):
    """A made-up device whose time is a sum over layers."""
    from gcp.cost.layers import layers

    return 1e-6 * sum(
        1 + layer.positions * np.prod(layer.widths(net.widths)) ** 0.5 * layer.kernel_size**0.5 for layer in layers(net)
    )


@pytest.mark.slow
def test_architectures_that_differ_in_a_dropped_block_are_one(net):
    part = "features_linearbottleneck[45]_"
    options = {"widths": {f"{part}conv0": (0.5, 1.0)}, "blocks": {f"{part}conv1": ("plain", "fused")}}
    space = Space(net, some(**options, drop=(f"{part}*",)), 2)
    levels = np.array(list(itertools.product(*map(range, space.sizes))))
    found = space.canonical(levels)
    names = [candidates.identity(space, space.pattern(each)) for each in levels]
    assert names == [candidates.identity(space, space.pattern(each)) for each in found]
    assert len(np.unique(found, axis=0)) == len(set(names)) == (1 + 4) ** 2
    assert np.array_equal(space.canonical(found), found)
    frozen = Space(net, some(**options, freeze=("drop:*4_*",)), 2, {"drop:*4_*": True})
    assert len(np.unique(frozen.canonical(frozen.random(200, np.random.default_rng(0))), axis=0)) == 4
    question = Question(space, lambda of: -of.sum(1).astype(float), (), 100, np.random.default_rng(0))
    assert len(SOLVERS["random"](question, None)) == (1 + 4) ** 2


@pytest.mark.slow
def test_a_latency_model_learns_blocks_that_the_network_does_not_have(space, net, tmp_path):
    """Of a device whose time is known: a model that was fitted to rewritten networks predicts others."""
    facts = {"spread": 0.0, "n": 9, "noisy": False, "attempts": 1}
    setup = {"runtime": "mxnet", "device": "cpu", "dtype": "float32", "batch": 1, "threads": 1}
    here = {"cpu": "made up", "versions": {}, "date": "now"}
    calls = []

    def measure(of):
        calls.append(of)
        return {"latency_s": seconds_of(of), **facts}, seconds_of(net)

    sampled = SampledSpace(space)
    how = {"slowdowns": dict.fromkeys(sampling.GRANULARITIES, 1.0), "sampled": sampled}
    samples = sampling.sample(net, tmp_path / "s.jsonl", setup, here, measure, 120, **how)
    assert any(line.decisions for line in samples.lines) and len(calls) == 120
    again = sampling.read_samples(tmp_path / "s.jsonl")
    assert [line.decisions for line in again.lines] == [line.decisions for line in samples.lines]
    model = latency.fit(net, samples, SampledSpace(Space(net, SpaceOptions())))
    held = sampling.sample(net, tmp_path / "h.jsonl", setup, here, measure, 20, seed=1, **how)
    found = latency.validate(model, net, held, sampled=sampled)
    good = found.quality["table"]
    assert good.nrmse < 0.05 and good.tau > 0.8 and good.within_10 >= 0.9 and good.within_5 <= good.within_10
    line, widths = held.lines[0], held.widths[0]
    small = sampled.network(widths, line.decisions)
    assert model.cost(small)(small.widths) == pytest.approx(found.predicted_s["table"][0], rel=1e-9)


@pytest.mark.parametrize(
    "name, value",
    [
        ("drop:nothing", True),
        ("block:features_linearbottleneck4_conv1", "other"),
        ("drop:features_linearbottleneck4_elemwise_add0", "yes"),
    ],
)
def test_sampled_decisions_that_the_network_does_not_have_are_refused(net, name, value):
    sampled = SampledSpace(Space(net, SpaceOptions()))
    for read in (sampled.layers, lambda decisions: sampled.network(net.widths, decisions)):
        with pytest.raises(UserError) as error:
            read({name: value})
        assert name in str(error.value)


def test_layers_alone_are_those_of_the_blocks_that_were_drawn(space, net, tmp_path):
    """With a time proportional to the MACs, all layers together take as long as the network that they are from."""

    def measure(of):
        return {"latency_s": macs(of)(of.widths), "spread": 0.0, "n": 9, "noisy": False, "attempts": 1}, 1.0

    sampled, rng = SampledSpace(space), np.random.default_rng(0)
    networks = [(net.widths, sampled.draw(rng)) for _ in range(2)]
    shares = sampling.layers_alone(sampled, networks, tmp_path / "layers", measure)
    whole = [sampled.network(*each) for each in networks]
    assert shares == pytest.approx([macs(each)(each.widths) for each in whole])
    assert len(set(shares)) > 1


# ---- qualities


def test_entropy_by_hand():
    net = random_network("cifar_resnet20_v1")
    fans = [3, *[16] * 6, 16, *[32] * 5, 16, 32, *[64] * 5, 32]
    kernels = [9] * 7 + [9] * 6 + [1] + [9] * 6 + [1]
    by_hand = sum(np.log(net.arrays[net.weight(n.name)][0].size) for n in net.nodes if n.op == "Convolution")
    assert len(fans) == len(kernels) == 21
    assert zero_shot.entropy(net)(net.widths) == pytest.approx(by_hand + np.log(64), rel=1e-12)


def test_segments_follow_each_other_and_compute_the_network(net):
    found = zero_shot.segments(net)
    assert found[0].source == (net.data, 0) and found[-1].result == net.outputs[0]
    assert all(a.result == b.source for a, b in zip(found, found[1:]))
    x = images(net)
    for segment in found:
        x = predict(zero_shot.alone(net, segment), x)
    assert np.allclose(x, predict(net, images(net)), atol=1e-4)


def test_an_isometry_has_no_loss_and_other_gains_have():
    import mxnet as mx
    from networks import built

    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=6, kernel=(1, 1), no_bias=True, name="conv")
    net = built(x, (6, 16, 16))
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    for gain in (1.0, 0.5, 3.0):
        of = net.with_arrays({"conv_weight": (gain * rotation).astype(np.float32)[:, :, None, None]})
        assert zero_shot.isometry(of) == pytest.approx(2 - gain - 1 / gain, abs=0.25 * gain)


def test_the_mean_product_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 5, 2, 2))
    slow = np.zeros((12, 5))
    for n, y, x in itertools.product(range(2), range(2), range(2)):
        slow += np.outer(a[n, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(12), b[n, :, y, x]) / 8
    assert np.allclose(zero_shot.mean_product(a, b), slow)
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(4, 5))  # of dense layers
    assert np.allclose(zero_shot.mean_product(a, b), sum(map(np.outer, a, b)) / 4)


def judged(space, folder, jobs=1, n=48):
    data = SimpleNamespace(train=Noise(n), validation=Noise(32), name="noise")
    return candidates.Judged(space, data, "classification", 0, 16, "none", folder, jobs)


@pytest.fixture(scope="module")
def tiny():
    """A space about a small network: two blocks that can go, and one width."""
    of = random_network("cifar_resnet20_v1", (3, 8, 8), 4)
    options = some(widths={"*stage1_conv0": (0.5, 1.0)}, drop=("*stage3*", "*stage2*"))
    return Space(of, options, 4)


@pytest.mark.slow
def test_candidates_are_trained_once(tiny, tmp_path):
    asked, options = judged(tiny, tmp_path), candidates.TrainingOptions(epochs=1, lr=0.05)
    chosen = [tiny.pattern(level) for level in tiny.random(3, np.random.default_rng(0))]
    found = candidates.trained(asked, chosen, options)
    path = candidates.path_of(asked, options)
    lines = path.read_text().splitlines()
    assert len(lines) == len({candidates.identity(tiny, of) for of in chosen})
    assert asked.images["candidates"] == len(lines) * 48
    path.write_text("\n".join(lines[:1]) + '\n{"torn')
    assert candidates.trained(judged(tiny, tmp_path), chosen, options)[0] == found[0]
    again = candidates.trained(judged(tiny, tmp_path), chosen, options)
    assert [(each.loss, each.top1) for each in again] == [(each.loss, each.top1) for each in found]


@pytest.mark.slow
def test_candidates_in_two_processes_are_those_of_one(tiny, tmp_path):
    chosen = [tiny.pattern(level) for level in tiny.random(4, np.random.default_rng(0))]
    options = candidates.TrainingOptions(epochs=1, lr=0.05)
    found = [
        {
            each.identity: (each.loss, each.top1)
            for each in candidates.trained(judged(tiny, folder, jobs), chosen, options)
        }
        for folder, jobs in ((tmp_path / "one", 1), (tmp_path / "two", 2))
    ]
    assert found[0] == found[1]


def test_what_other_processes_are_training_comes_last(tiny, tmp_path, monkeypatch):
    """Of three candidates one is trained elsewhere, and in the file in the end; the process of another is killed."""
    facts = {"top1": 0.5, "loss": 1.0, "n_eval": 32, "images": 48, "seconds": 1.0}
    order, found = [], []

    def trains(tasks, how, jobs):
        for name, net in tasks:
            order.append(name)
            yield name, net, facts

    monkeypatch.setattr(candidates, "_all", trains)
    chosen = [tiny.pattern(level) for level in tiny.random(3, np.random.default_rng(0))]
    asked, options = judged(tiny, tmp_path), candidates.TrainingOptions(epochs=1)
    elsewhere, killed, free = (candidates.identity(tiny, each) for each in chosen)
    assert len({elsewhere, killed, free}) == 3
    path = candidates.path_of(asked, options)
    search = threading.Thread(target=lambda: found.extend(candidates.trained(asked, chosen, options)))
    with locked(tmp_path, candidates.lock_of(path, elsewhere)), locked(tmp_path, candidates.lock_of(path, killed)):
        search.start()
        until = time.monotonic() + 60
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.01)
        other = candidates.Candidate(identity=elsewhere, pattern={}, macs=1, params=1, **{**facts, "top1": 0.25})
        with path.open("a", encoding="utf-8") as file:
            file.write(other.model_dump_json() + "\n")
        assert order == [free] and search.is_alive()
    search.join(60)
    assert order == [free, killed] and [each.top1 for each in found] == [0.25, 0.5, 0.5]
    assert len(candidates.read(path)) == 3 and asked.images["candidates"] == 3 * 48


@pytest.mark.slow
def test_a_supernet_step_is_that_of_the_architecture_by_itself(space):
    """Loss and updated weights of one step against a network made of the same arrays; the others' stay."""
    from gcp.backend.engine import mx
    from gcp.search.supernet import SupernetStep
    from gcp.train.losses import Objective
    from gcp.train.optimisers import SGD
    from gcp.train.steps import OrdinaryStep

    options = SupernetOptions(hold=1, momentum=0.0, wd=0.0)
    rng = np.random.default_rng(0)
    x = mx.nd.array(rng.normal(size=(8, 3, 32, 32)).astype(np.float32))
    y = mx.nd.array(rng.integers(0, 5, 8).astype(np.int32))
    step, twin = (SupernetStep(space, CLASSIFICATION, options, 0) for _ in range(2))
    from gcp.seeds import slimmable_generator

    pattern = space.pattern(space.random(1, slimmable_generator(0, 0))[0])
    net, places = twin.store.network(pattern)
    own = OrdinaryStep(net, Objective(), lambda block: SGD(block, 0.0, 0.0), 0)
    loss = step(x, y, 0, 0.1)
    assert np.allclose(loss.asnumpy(), own(x, y, 0, 0.1).asnumpy(), atol=1e-5)
    step.synchronise()
    trained = own.network()
    for name, (key, at) in places.items():
        if "running" not in name:
            assert np.allclose(step.store.arrays[key][at], trained.arrays[name], atol=1e-5), name
            rest = np.ones(step.store.arrays[key].shape, bool)
            rest[at] = False
            assert np.array_equal(step.store.arrays[key][rest], twin.store.arrays[key][rest])


@pytest.mark.slow
def test_a_supernet_resumes_bit_for_bit(tiny, tmp_path):
    from gcp.backend.engine import mx
    from gcp.search.supernet import SupernetStep

    options, data = SupernetOptions(hold=2), Noise(16)
    batches = [(mx.nd.array(x), mx.nd.array(y)) for _ in range(5) for x, y, _ in data.batches(16)]
    whole = SupernetStep(tiny, CLASSIFICATION, options, 0)
    for i, (x, y) in enumerate(batches):
        if i == 3:  # in the middle of what an architecture is held for
            state = {key: value.asnumpy() for key, value in whole.state().items()}
        whole(x, y, i, 0.05)
    again = SupernetStep(tiny, CLASSIFICATION, options, 0)
    again.restore(state)
    for i in (3, 4):
        again(*batches[i], i, 0.05)
    ends = [{key: value.asnumpy() for key, value in step.state().items()} for step in (whole, again)]
    assert ends[0].keys() == ends[1].keys()
    assert all(np.array_equal(value, ends[1][key]) for key, value in ends[0].items())


@pytest.mark.slow
def test_a_supernet_is_trained_once_and_compares(tiny, tmp_path):
    options = SupernetOptions(epochs=2, images=32)
    first = judged(tiny, tmp_path)
    levels = tiny.random(3, np.random.default_rng(0))
    scores = QUALITIES["supernet"](first, options)(levels)
    assert np.isfinite(scores).all() and first.images["supernet"] == 96
    few = judged(tiny, tmp_path)
    few.data.validation = Noise(few.batch - 1)  # fewer than a batch
    assert np.isfinite(QUALITIES["supernet"](few, options)(levels)).all()
    assert few.images["supernet, comparing"] == 3 * (few.batch - 1)
    again = judged(tiny, tmp_path)
    assert np.array_equal(QUALITIES["supernet"](again, options)(levels), scores)
    assert len(list(tmp_path.glob("supernet-*.params"))) == 1 and not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.slow
def test_spaces_whose_multipliers_are_rounded_otherwise_do_not_share_a_supernet(tiny, tmp_path):
    for round_to in (1, 4):
        space = Space(tiny.net, some(multipliers=(0.3, 0.7)), round_to)
        own = judged(space, tmp_path)
        scores = QUALITIES["supernet"](own, SupernetOptions(epochs=0.1, images=8))
        assert np.isfinite(scores(space.random(1, np.random.default_rng(0)))).all()
    assert len(list(tmp_path.glob("supernet-*.params"))) == 2


def test_additive_gains_are_those_that_were_planted(tiny):
    rng = np.random.default_rng(0)
    planted = {name: rng.normal(size=len(values)) for name, values in tiny.decisions.items()}
    levels = tiny.random(200, rng)
    scores = sum(of[levels[:, k]] for k, of in enumerate(planted.values()))
    found, fit = additive(tiny, levels, scores, ridge=1e-6)
    assert fit == pytest.approx(1, abs=1e-6)
    for name, of in planted.items():
        assert np.allclose(np.diff(found[name]), np.diff(of), atol=1e-4)


# ---- solvers


def question(space, n, seed=0, part=0.8, score=None):
    priced = space.price(macs)
    limit = Limit("macs", (priced,), part * macs(space.net)(space.net.widths), (1.0,))
    score = score or (lambda levels: space.price(zero_shot.entropy)(levels))
    return Question(space, score, (limit,), n, np.random.default_rng(seed))


@pytest.mark.slow
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_solvers_stay_within_the_limit_and_find_planted_gains(tiny, solver):
    """Of a space that can be enumerated: what is found against the best of all."""
    if solver == "nsga2":
        pytest.importorskip("pymoo")
    gains = [np.linspace(0, 1 + k, n) for k, n in enumerate(tiny.sizes)]
    score = lambda levels: sum(of[levels[:, k]] for k, of in enumerate(gains)).astype(float)  # noqa: E731
    asked = question(tiny, 40, part=0.9, score=score)
    ranked = SOLVERS[solver](asked, SOLVERS.options[solver]())
    every = np.array(list(itertools.product(*(range(n) for n in tiny.sizes))))
    best = score(every[asked.excess(every) == 0]).max()
    assert (asked.excess(ranked) == 0).all() and len(asked.asked) <= 40
    found = score(ranked[:1])[0]
    assert found == max(asked.asked.values())
    assert found == pytest.approx(best) if solver == "exact" else found >= 0.8 * best


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("n", [3, 40])
def test_solvers_evaluate_no_more_than_they_may(tiny, solver, n):
    if solver == "nsga2":
        pytest.importorskip("pymoo")
    asked = question(tiny, n, part=0.9, score=lambda levels: levels.sum(1).astype(float))
    SOLVERS[solver](asked, SOLVERS.options[solver]())
    assert 1 <= len(asked.asked) <= n


def test_evolution_repeats_itself_and_asks_nothing_twice(tiny):
    asked = []

    def score(levels):
        asked.extend(map(tuple, levels.tolist()))
        return levels.sum(1).astype(float)

    options = EvolutionOptions(population=6, tournament=3, brood=2)
    first = SOLVERS["evolution"](question(tiny, 20, score=score, part=2.0), options)
    assert len(asked) == len(set(asked)) == 20
    again = SOLVERS["evolution"](question(tiny, 20, score=score, part=2.0), options)
    assert np.array_equal(first, again)


@pytest.mark.slow
def test_where_no_exact_solution_uses_enough_of_the_budget_what_was_judged_is_ranked(tiny):
    """The fewer, the better: the best sum uses as little as it can, and nothing that was judged is lost."""
    asked = question(tiny, 20, score=lambda levels: -levels.sum(1).astype(float))
    asked.limits = tuple(replace(limit, least=0.9) for limit in asked.limits)
    ranked = SOLVERS["exact"](asked, SOLVERS.options["exact"]())
    assert len(ranked) and (asked.excess(ranked) == 0).all()


@pytest.mark.slow
def test_the_exact_solver_heeds_a_maximum_and_refuses_two_sums(tiny):
    space = Space(tiny.net, some(multipliers=(0.5, 0.75, 1.0), drop=("*stage3*",)), 4)
    memory, sums = space.price(peak_memory), space.price(params)
    most = 0.8 * peak_memory(tiny.net)(tiny.net.widths)
    asked = question(space, 20, part=2.0)
    asked.limits = (*asked.limits, Limit("memory", (memory,), most, (1.0,)))
    ranked = SOLVERS["exact"](asked, SOLVERS.options["exact"]())
    assert len(ranked) and (memory(ranked) <= most).all()
    asked.limits = (*asked.limits, Limit("params", (sums,), 1e9, (1.0,)))
    with pytest.raises(UserError) as error:
        SOLVERS["exact"](asked, SOLVERS.options["exact"]())
    assert error.value.key == "solver.limits"


def test_a_budget_that_nothing_meets_is_named(tiny):
    asked = question(tiny, 4, part=1e-3)
    for call in (lambda: check(tiny, asked.limits), lambda: asked.feasible(1)):
        with pytest.raises(UserError, match="macs") as error:
            call()
        assert error.value.key == "space.budget"


def test_limits_add_bytes(tiny):
    options = ArchitectureOptions(limits=(LimitOptions(costs=("params", "memory"), at_most=64, bytes_per_value=1),))
    net = tiny.net
    budget = Budget(macs(net), macs(net)(net.widths), 1.0, cost_of=macs)
    _, limit = limits_of(tiny, options, budget)
    level = tiny.levels({})[None]
    small = tiny.network(tiny.pattern(level[0]))
    by_hand = (params(small)(small.widths) + peak_memory(small)(small.widths) / 4) / 1024 / 64
    assert limit(level)[0] == pytest.approx(by_hand)


# ---- patterns


def test_a_pattern_is_written_read_edited_and_frozen(space, net, tmp_path):
    pattern = patterns.of(space, space.pattern(space.random(1, np.random.default_rng(3))[0]), {"quality": ["entropy"]})
    patterns.write(tmp_path / "p.yaml", pattern)
    assert patterns.read(tmp_path / "p.yaml") == pattern
    frozen = space_of(net, some(start_from=str(tmp_path / "p.yaml"), freeze=("*",)), 2)
    assert not frozen.decisions
    a, b = (of.network(space.resolved(pattern.decisions)) for of in (space, frozen))
    assert a.shapes == b.shapes and a.widths == b.widths
    part = some(
        widths={"*": (0.5, 1.0)}, start_from=str(tmp_path / "p.yaml"), freeze=("width:*bottleneck[0-4]*", "block:*")
    )
    found = space_of(net, part, 2)
    assert (
        all("bottleneck3" not in name for name in found.decisions)
        and found.fixed.items()
        >= {name: value for name, value in pattern.decisions.items() if name.startswith("block:")}.items()
    )


def test_wildcards_and_parts_of_widths(space):
    found = space.resolved({"block:*": "fused", "block:*4_conv1": "plain", "width:*bottleneck3_conv0": 0.5})
    assert found["block:features_linearbottleneck3_conv1"] == "fused"
    assert found["block:features_linearbottleneck4_conv1"] == "plain"
    assert found["width:features_linearbottleneck3_conv0"] == 18


def test_a_pattern_of_another_network_keeps_parts_of_widths(space):
    other = Space(random_network("mobilenetv2_0.5", (3, 64, 64), 3), SpaceOptions(), 4)
    decisions = {"width:features_linearbottleneck3_conv0": 18, "block:features_linearbottleneck3_conv1": "fused"}
    found = patterns.transferred(patterns.of(space, decisions), space, other)
    assert found.decisions == {
        "width:features_linearbottleneck3_conv0": 36,  # half of 72
        "block:features_linearbottleneck3_conv1": "fused",
    }
    assert found.input == (3, 64, 64) and found.classes == 3
    with pytest.raises(UserError) as error:
        patterns.transferred(patterns.of(space, decisions), space, Space(random_network("cifar_resnet20_v1"), some()))
    assert error.value.key == "pattern.other"


# ---- the method


@pytest.mark.slow
@pytest.mark.parametrize("quality", [("trained",), ("entropy",), ("zero_shot", "trained")])
def test_the_method_finds_a_network_within_the_target(tiny, tmp_path, quality):
    net, data = tiny.net, SimpleNamespace(train=Noise(48), validation=Noise(32), name="noise")
    space = {"widths": {"*stage1_conv0": (0.5, 1.0)}, "drop": ("*stage3*", "*stage2*")}
    options = ArchitectureOptions.model_validate(
        {"space": space, "quality": quality, "candidates": (6, 3)[: len(quality)], "training": {"epochs": 1.0}}
    )
    budget = Budget(macs(net), macs(net)(net.widths), 0.8, 4, cost_of=macs)
    options.check(net, budget)
    said = []
    run = SimpleNamespace(path=tmp_path, shared=tmp_path, log=lambda event, **row: said.append(event))
    outcome = architecture(Problem(net, budget, data, 0, 16), options, run)
    assert macs(outcome.network)(outcome.network.widths) <= 0.8 * budget.original
    row = outcome.history[-1]
    assert row["cost_kept"] <= 0.8 and len(outcome.history) == len(quality) + 1
    assert outcome.images.get("candidates", 0) == (0 if quality == ("entropy",) else options.candidates[-1] * 48)
    assert patterns.read(tmp_path / "pattern.yaml").decisions == row["decisions"]
    others = [patterns.read(tmp_path / f"pattern-{n}.yaml") for n in range(1, len(row["best"]) + 1)]
    assert [{"decisions": o.decisions, "score": o.found["score"]} for o in others] == row["best"] and len(others) > 2
    assert {"quality", "searched"} <= set(said)
    again = architecture(Problem(net, budget, data, 0, 16), options, run)
    assert again.history[-1] == row and again.images == outcome.images
    json.dumps(outcome.history)


def test_an_architecture_starts_from_the_weights_that_it_can(space, net, tmp_path):
    """Nothing but a block fused: what is left is as it was."""
    data = SimpleNamespace(train=Noise(16), validation=Noise(16), name="noise")
    name = "block:features_linearbottleneck3_conv1"
    (tmp_path / "p.yaml").write_text(
        f"network: {net.name}\ninput: [3, 32, 32]\nclasses: 5\ndecisions: {{'{name}': fused}}\n"
    )
    options = ArchitectureOptions.model_validate({"space": {"start_from": str(tmp_path / "p.yaml"), "freeze": ("*",)}})
    budget = Budget(macs(net), macs(net)(net.widths), 1.0, 2, cost_of=macs)
    run = SimpleNamespace(path=tmp_path, shared=tmp_path, log=lambda event, **row: None)
    found = architecture(Problem(net, budget, data, 0, 16), options, run).network
    wanted = space.rewritten({name: "fused"})
    assert found.shapes == wanted.shapes
    assert all(np.array_equal(value, wanted.arrays[key]) for key, value in found.arrays.items())


# ---- bad input


@pytest.mark.parametrize(
    "options, key",
    [
        ({"widths": {"nowhere*": (0.5, 1.0)}}, "space.name"),
        ({"blocks": {"features_linearbottleneck0_conv0": ("plain", "fused")}}, "space.choice"),
        ({"drop": ("nowhere",)}, "space.name"),
        ({"kernels": {"*conv1": (1, 9)}, "freeze": ("nowhere",)}, "space.name"),
        ({}, "space.empty"),
        ({"start_from": "nowhere.yaml"}, None),
    ],
)
def test_spaces_that_cannot_be(net, options, key):
    with pytest.raises(UserError) as error:
        space_of(net, some(**options), 2)
    assert key is None or error.value.key == key


@pytest.mark.parametrize(
    "options",
    [
        {"widths": {"*": (0.0,)}},
        {"blocks": {"*": ("plain", "melted")}},
        {"kernels": {"*": (2,)}},
        {"multipliers": (-1.0,)},
    ],
)
def test_values_that_cannot_be(options):
    with pytest.raises(ValidationError):
        some(**options)


@pytest.mark.parametrize(
    "decisions, key",
    [
        ({"block:nowhere": "fused"}, "space.name"),
        ({"block:features_linearbottleneck3_conv1": "melted"}, "pattern.value"),
        ({"width:features_conv0": 0}, "pattern.value"),
        ({"width:features_conv0": True}, "pattern.value"),
        ({"kernel:features_conv0": 4}, "pattern.value"),
    ],
)
def test_patterns_that_cannot_be(space, decisions, key):
    with pytest.raises(UserError) as error:
        space.resolved(decisions)
    assert error.value.key == key


@pytest.mark.parametrize(
    "text", ["[]", "network: a", "network: a\ninput: [3, 8]\nclasses: 2\ndecisions: {}\n", "a: &x [*x]"]
)
def test_pattern_files_that_cannot_be(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError):
        patterns.read(tmp_path / "p.yaml")


def test_a_pattern_of_another_size_is_refused(net, tmp_path):
    (tmp_path / "p.yaml").write_text(f"network: {net.name}\ninput: [3, 64, 64]\nclasses: 5\ndecisions: {{}}\n")
    with pytest.raises(UserError) as error:
        space_of(net, some(start_from=str(tmp_path / "p.yaml"), freeze=("*",)), 2)
    assert error.value.key == "pattern.other"


def test_options_say_what_is_wrong():
    for wrong in (
        {"quality": ("entropy", "trained"), "candidates": (5,)},
        {"quality": ("entropy", "trained"), "candidates": (5, 6)},
        {"quality": ("guess",)},
        {"limits": [{"costs": ["macs", "params"], "at_most": 1.0}]},
    ):
        with pytest.raises(ValidationError):
            ArchitectureOptions.model_validate(wrong)


# ---- as a user would


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("architecture")
    space = "{widths: {'*stage3*': [0.5, 1.0]}, drop: ['*']}"
    (folder / "_base.yaml").write_text(TINY)
    (folder / "a.yaml").write_text(
        f"base: _base.yaml\noutput: {folder / 'runs'}\nprune: {{method: architecture, objective: macs, target: 0.8, "
        f"architecture: {{space: {space}, quality: [entropy, trained], candidates: [50, 3], "
        "training: {epochs: 0.5}}}\n"
        "finetune: {from_scratch: true}\n"
    )
    return folder / "a.yaml"


@pytest.mark.slow
def test_from_a_configuration_to_a_network_its_pattern_and_its_words(configuration, tmp_path):
    code, out, err = finish(script("search.py", "space", configuration))
    assert code == 0 and "decisions" in out, err
    code, out, err = finish(script("run.py", configuration))
    assert code == 0, err
    [record] = configuration.parent.glob("runs/a-*/record.json")
    held = json.loads(record.read_text())
    assert held["cost_predicted"] <= 0.8 and held["images"]["candidates"] > 0
    pattern = record.parent / "pattern.yaml"
    code, out, err = finish(script("search.py", "explain", pattern, "--out", tmp_path / "x"))
    assert code == 0 and (tmp_path / "x.png").exists(), err
    other = tmp_path / "other.yaml"
    code, out, err = finish(
        script("search.py", "transfer", pattern, "cifar_resnet56_v1", "--out", other, "--round-to", 4)
    )
    assert code == 0 and patterns.read(other).network == "cifar_resnet56_v1", err
    how = ("--set", "prune.architecture.space.start_from=" + str(pattern), "prune.architecture.space.freeze=['*']")
    code, out, err = finish(script("run.py", configuration, *how, "name=again"))
    assert code == 0, err
    [again] = configuration.parent.glob("runs/again-*/record.json")
    assert json.loads(again.read_text())["stages"]["final"]["macs"] == held["stages"]["final"]["macs"]


@pytest.mark.slow
def test_qualities_are_judged_by_trained_networks(configuration, tmp_path):
    how = ("--n", 4, "--macs", 0.8, "--tolerance", 0.2, "--quality", "entropy", "params", "--out", tmp_path / "q")
    code, out, err = finish(script("search.py", "validate", configuration, *how))
    assert code == 0 and (tmp_path / "q.networks.csv").exists() and (tmp_path / "q.png").exists(), err
    code, out, err = finish(script("search.py", "validate", configuration, *how[:-4], "--quality", "guess", *how[-2:]))
    assert code == 2 and err.count("\n") == 1
    code, out, err = finish(script("search.py", "validate", configuration, "--trainings", 2, "--out", tmp_path / "q"))
    assert code == 2 and err.count("\n") == 1 and "--trainings: is for widths" in err


@pytest.mark.slow
def test_a_budget_that_nothing_meets_is_one_line(configuration):
    code, out, err = finish(script("search.py", "space", configuration, "--set", "prune.target=0.01"))
    assert code == 2 and err.count("\n") == 1 and "target 0.01" in err


def test_a_method_without_a_space_is_refused(configuration):
    cfg = config.load(configuration, ["prune.method=none", "prune.target=1.0"])
    with pytest.raises(UserError) as error:
        architecture_search.described(cfg)
    assert error.value.key == "search.method"


def test_architectures_to_train_keep_the_target_by_the_clock_and_each_is_timed_once(tmp_path):
    """A made-up device takes 1.25 of what is predicted, so the aim of 80 has to become 64."""
    timed = []

    def measure(cost, limit):
        timed.append(cost)
        return 1.25 * cost, 0.0

    space = SimpleNamespace(network=lambda pattern: pattern, pattern=lambda level: float(level[0]))
    budget = SimpleNamespace(target=0.8, original=100.0, of=float, measure=measure)

    def solved(aim):
        return np.arange(int(aim), 0, -1)[:, None]

    clock = Clock(space, budget, tmp_path / "timings.json")
    kept = clock.keeping(solved(80.0), 2, solved).ravel().tolist()
    assert len(kept) == 2 and all(1.25 * cost <= 80 * 1.02 for cost in kept)
    assert len(timed) == len(set(timed)) == len(clock.rows)
    again = Clock(space, budget, tmp_path / "timings.json")  # of a run that was killed
    assert again.keeping(solved(80.0), 2, solved).ravel().tolist() == kept and len(timed) == len(clock.rows)


def test_of_architectures_that_all_miss_the_target_by_the_clock_the_nearest_is_taken(tmp_path):
    space = SimpleNamespace(network=lambda pattern: pattern, pattern=lambda level: float(level[0]))
    budget = SimpleNamespace(target=0.1, original=100.0, of=float, measure=lambda cost, limit: (cost, 0.0))
    clock = Clock(space, budget, tmp_path / "timings.json")
    assert clock.first(np.array([[50], [40], [60]])).tolist() == [40]


def test_a_part_of_a_budget_that_has_to_be_used_is_a_limit_too():
    own = np.array([0.5, 0.9, 1.0, 1.1])
    limit = Limit("target", (lambda levels: own[levels[:, 0]],), 1.0, (1.0,), least=0.8)
    question = Question(None, None, (limit,), 1, None)
    assert question.excess(np.arange(4)[:, None]) == pytest.approx([0.3, 0, 0, 0.1])
    assert "at_least" in str(question._unmet(np.array([0])))
    assert "at_least" not in str(question._unmet(np.array([3])))


def test_a_partial_rank_correlation_is_what_a_third_thing_does_not_explain():
    """By the textbook's formula from the three plain correlations; nothing is left of a thing given itself."""
    rng = np.random.default_rng(0)
    given = rng.random(50)
    x, y = given + rng.random(50), given + rng.random(50)
    rho = {
        name: stats.spearmanr(a, b).statistic
        for name, (a, b) in {"xy": (x, y), "xz": (x, given), "yz": (y, given)}.items()
    }
    wanted = (rho["xy"] - rho["xz"] * rho["yz"]) / np.sqrt((1 - rho["xz"] ** 2) * (1 - rho["yz"] ** 2))
    assert checks.partial_rho(x, y, given) == pytest.approx(wanted)
    assert np.isnan(checks.partial_rho(-given, y, given))
    assert np.isnan(checks.partial_rho(np.ones(50), y, given))
