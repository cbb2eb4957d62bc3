"""docs/extending.md: every example is run, and what it adds is used."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Optional, Tuple

import mxnet as mx
import numpy as np
import pytest
from networks import built, difference, images, random_network
from pydantic import Field

from gcp.backend.blocks import predict
from gcp.cost import base as costs
from gcp.cost import layers
from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.data import base, datasets
from gcp.experiment.config import Config
from gcp.graph import operators
from gcp.graph.surgery import shrink, silence
from gcp.methods import base as methods
from gcp.methods import criteria
from gcp.methods.select import select
from gcp.options import Options

DOCS = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def example(section: str) -> str:
    """The Python block of a section."""
    return re.search(rf"^## {section}$.*?^```python\n(.*?)^```$", DOCS, re.DOTALL | re.MULTILINE)[1]


def test_a_data_set(monkeypatch):
    monkeypatch.setattr(base.DATASETS, "_entries", dict(base.DATASETS._entries))
    monkeypatch.setattr(base.DATASETS, "options", dict(base.DATASETS.options))
    code = example("A data set")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(code, {**vars(base), "Annotated": Annotated, "Tuple": Tuple, "np": np, "Field": Field})
    cfg = Config.model_validate(
        {
            "name": "a",
            "scale": "smoke",
            "model": {"name": "cifar_resnet20_v1"},
            "data": {"name": "stripes", "n_images": 100, "input": [3, 8, 8]},
            "train": {"epochs": 1},
        }
    )
    found = datasets.load(cfg.data)
    assert found.classes == ("lying", "standing") and cfg.data.known_size() == (2, 100)
    assert (len(found.train), len(found.validation), len(found.test)) == (90, 10, 50)
    x, y, _ = next(found.train.batches(90, seed=0))
    assert all((image[0, 0] == image[0, 0, 0]).all() == (label == 0) for image, label in zip(x, y))
    other = cfg.model_copy(update={"data": datasets.options(name="stripes", input=(3, 8, 8))})
    assert other.fingerprint() != cfg.fingerprint()


def test_a_criterion_and_a_method(monkeypatch):
    for registry in (criteria.CRITERIA, methods.METHODS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "options", dict(registry.options))
    code = example("A criterion")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(code, vars(criteria).copy())
    net = random_network("cifar_resnet20_v1")
    cost = macs(net)
    problem = methods.Problem(net, Budget(cost, cost(net.widths), 0.5), data=SimpleNamespace(train=()), seed=0, batch=1)
    group = net.groups[0]
    scores = criteria.CRITERIA["largest_weight"](problem)[group.name]
    weights = [np.abs(net.arrays[net.weight(layer)]).max((1, 2, 3)) for layer in group.producers]
    assert np.allclose(scores, np.sum(weights, axis=0))

    code = example("A method")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(code, {**vars(methods), "CRITERIA": criteria.CRITERIA, "select": select, "partial": partial})
    options = methods.METHODS.options["ranked"](criterion="largest_weight")
    outcome = methods.METHODS["ranked"](problem, options, run=None)
    assert macs(outcome.network)(outcome.network.widths) <= 0.5 * cost(net.widths)
    assert options.label("macs") == "Ranked (largest_weight)"


def test_a_cost(monkeypatch):
    monkeypatch.setattr(costs.COSTS, "_entries", dict(costs.COSTS._entries))
    monkeypatch.setattr(costs.COSTS, "options", dict(costs.COSTS.options))
    code = example("A cost")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(code, {**vars(costs), **vars(layers), "Optional": Optional, "Options": Options})
    net = random_network("cifar_resnet20_v1")
    cost = costs.COSTS["activations"](net)
    # A stem and six convs of 16 channels on 16x16, then six (and a shortcut) of 32 on 8x8 and of 64 on 4x4; 7 classes.
    assert cost(net.widths) == 7 * 16 * 256 + 7 * 32 * 64 + 7 * 64 * 16 + 7
    budget = Budget(cost, cost(net.widths), 0.5)
    keep = select({g.name: np.arange(g.size, dtype=float) for g in net.groups}, budget.cost, 0.5 * budget.original)
    assert 0 < cost({name: len(kept) for name, kept in keep.items()}) <= 0.5 * budget.original
    assert costs.COSTS["activations"].method == "GCP-a"


def test_an_operator(monkeypatch):
    monkeypatch.setattr(operators.OPERATORS, "_entries", dict(operators.OPERATORS._entries))
    monkeypatch.setattr(operators.OPERATORS, "options", dict(operators.OPERATORS.options))
    x = mx.sym.Convolution(mx.sym.var("data"), num_filter=4, kernel=(3, 3), name="conv")
    x = mx.sym.FullyConnected(mx.sym.arcsinh(x), num_hidden=2, name="dense")
    with pytest.warns(UserWarning, match="operator 'arcsinh'"):
        assert built(x, (3, 8, 8)).widths == {}
    code = example("An operator")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(code, vars(operators).copy())
    net = built(x, (3, 8, 8))
    keep, inputs = {"conv": np.array([0, 2])}, images(net)
    assert difference(predict(shrink(net, keep), inputs), predict(silence(net, keep), inputs)) < 1e-5
