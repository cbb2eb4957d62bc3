"""Widths at random: the largest in their proportions, the best by validation, counted, resumed to the same bits."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from networks import random_network

from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.errors import UserError
from gcp.methods.base import METHODS, Problem
from gcp.methods.random_widths import scaled_widths
from gcp.train import loop
from gcp.train.optimisers import DivergedError
from tests.test_prune import Noise


@pytest.fixture(scope="module")
def net():
    return random_network("cifar_resnet20_v1", (3, 8, 8), 4)


@pytest.mark.parametrize("round_to", [1, 4])
def test_widths_are_the_largest_in_their_proportions(net, round_to):
    """Against a walk over all scales at which a width changes."""
    cost, rng = macs(net), np.random.default_rng(1)
    budget, sizes = Budget(cost, cost(net.widths), 0.4, round_to), net.widths
    fractions = {name: float(f) for name, f in zip(sizes, rng.uniform(0.25, 1, len(sizes)))}
    found = scaled_widths(sizes, fractions, budget, 0.4 * budget.original)
    steps = sorted({k / (fractions[g] * n) for g, n in sizes.items() for k in range(1, n + 1)})
    best = max((scale for scale in steps if cost(_by_hand(sizes, fractions, scale, round_to)) <= 0.4 * budget.original))
    assert found == _by_hand(sizes, fractions, best, round_to)


def test_a_limit_that_allows_the_whole_network_leaves_it_whole(net):
    """Whichever group has the smallest fraction, and so is the last to be whole."""
    budget, sizes = Budget(macs(net), macs(net)(net.widths), 1.0), net.widths
    for seed in range(20):
        fractions = dict(zip(sizes, np.random.default_rng(seed).uniform(0.5, 2, len(sizes)).tolist()))
        assert scaled_widths(sizes, fractions, budget, budget.original) == sizes


def _by_hand(sizes, fractions, scale, round_to):
    widths = {}
    for g, n in sizes.items():
        wanted = min(n, max(1, int(scale * fractions[g] * n + 1e-9)))
        widths[g] = n if wanted == n else max(min(n, round_to), wanted // round_to * round_to)
    return widths


@pytest.mark.slow
def test_the_best_by_validation_goes_on_and_all_images_count(net, tmp_path):
    cost, data = macs(net), SimpleNamespace(train=Noise(24), validation=Noise(8))
    data.train.n_batches, rows = Noise(24).n_batches, []
    problem = Problem(net, Budget(cost, cost(net.widths), 0.5), data, 0, 8, statistics_images=16)
    options = METHODS.options["random_widths"](tries=3, epochs=0.34)

    def outcome(folder):
        folder.mkdir(exist_ok=True)
        run = SimpleNamespace(path=folder, log=lambda event, **values: rows.append(values))
        return METHODS["random_widths"](problem, options, run)

    found = outcome(tmp_path / "whole")
    assert found.images == {"tries": 3 * 8, "statistics": 3 * 16}
    assert sum(found.images.values()) == options.n_images(24, 8, 16)
    losses = [row["validation_loss"] for row in found.history]
    assert found.history == rows and len(set(losses)) == 3
    assert found.network.widths == found.history[int(np.argmin(losses))]["widths"]
    for a, b in itertools.combinations(found.history, 2):
        assert a["widths"] != b["widths"]
    assert all(cost(row["widths"]) <= 0.5 * cost(net.widths) for row in found.history)

    # A run that is killed after its second try, and one whose try diverged: the others decide.
    for path in (tmp_path / "whole").glob("try-3*"):
        path.unlink()
    again = outcome(tmp_path / "whole")
    assert all(np.array_equal(again.network.arrays[k], v) for k, v in found.network.arrays.items())
    best = int(np.argmin(losses)) + 1
    facts = json.loads((tmp_path / "whole" / f"try-{best}.json").read_text())
    (tmp_path / "whole" / f"try-{best}.json").write_text(json.dumps({**facts, "loss": None}))
    second = outcome(tmp_path / "whole").network
    assert second.widths == found.history[int(np.argsort(losses)[1])]["widths"]


@pytest.mark.slow
def test_a_try_that_diverges_is_left_out_and_all_of_them_are_an_error(net, tmp_path, monkeypatch):
    cost, data = macs(net), SimpleNamespace(train=Noise(24), validation=Noise(8))
    problem, asked = Problem(net, Budget(cost, cost(net.widths), 0.5), data, 0, 8), itertools.count()
    options = METHODS.options["random_widths"](tries=2, epochs=0.67)
    fit = loop.fit

    def diverging(*args, **how):
        if next(asked) != 1:
            error = DivergedError("the loss is nan")
            error.steps = 1
            raise error
        return fit(*args, **how)

    monkeypatch.setattr(loop, "fit", diverging)
    run = SimpleNamespace(path=tmp_path, log=lambda event, **values: None)
    outcome = METHODS["random_widths"](problem, options, run)
    assert outcome.history[0]["validation_loss"] is None and outcome.images["tries"] == 8 + 16
    assert outcome.network.widths == outcome.history[1]["widths"]
    for path in tmp_path.glob("try-*"):
        path.unlink()
    with pytest.raises(UserError, match="all networks of random widths diverged"):
        METHODS["random_widths"](problem, options, run)
