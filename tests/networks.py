"""Networks for tests: GluonCV's, small, with batch-norm arrays that are not all alike."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from gcp.backend import files
from gcp.backend.zoo import from_gluoncv
from gcp.graph.network import Keep, Network, parse_nodes

SMALL = {"cifar_resnet20_v1": (3, 16, 16)}


@lru_cache(maxsize=None)
def shape_only(name: str, input_shape=(3, 224, 224)) -> Network:
    """The network without weights."""
    return from_gluoncv(name, input_shape)


@lru_cache(maxsize=None)
def random_network(name: str, input_shape=None, n_classes: int = 7, seed: int = 0) -> Network:
    """The network with random weights; scales of both signs, so that masks and ranks cannot rely on one."""
    net = from_gluoncv(name, input_shape or SMALL.get(name, (3, 32, 32)), n_classes, seed=seed)
    rng = np.random.default_rng(seed)
    draw = {
        "gamma": lambda s: rng.uniform(0.5, 1.5, s) * rng.choice([-1, 1], s),
        "beta": lambda s: rng.normal(0.3, 0.5, s),
        "running_mean": lambda s: rng.normal(0, 0.3, s),
        "running_var": lambda s: rng.uniform(0.5, 1.5, s),
        "bias": lambda s: rng.normal(0, 0.3, s),
    }
    arrays = {}
    for key, value in net.arrays.items():
        end = next((e for e in draw if key.endswith("_" + e)), None)
        if end is not None and key not in frozen_arrays(net):
            arrays[key] = draw[end](value.shape).astype(np.float32)
    return net.with_arrays(arrays)


def frozen_arrays(net: Network) -> set:
    """Arrays that are no parameters: scales held at one and shifts held at zero."""
    return {n.name for n in net.nodes if n.attrs.get("__lr_mult__") == "0.0"}


def centre_taps(net: Network) -> Network:
    """The network with only the centre tap of every padded conv, so that no zero-padded border is ever read."""
    arrays = {}
    for node in net.nodes:
        if node.op == "Convolution" and any(node.literal("pad", (0, 0))):
            name = net.weight(node.name)
            (kh, kw), pad = net.arrays[name].shape[2:], node.literal("pad")
            assert pad == (kh // 2, kw // 2), "the centre tap of such a conv could read padding"
            arrays[name] = np.zeros_like(net.arrays[name])
            # times the square root of the taps: variances stay as they were
            arrays[name][:, :, kh // 2, kw // 2] = net.arrays[name][:, :, kh // 2, kw // 2] * np.sqrt(kh * kw)
    return net.with_arrays(arrays)


def random_keep(net: Network, fraction: float = 0.5, seed: int = 0) -> Keep:
    """Another random part of every group."""
    rng = np.random.default_rng(seed)
    return {g.name: np.sort(rng.choice(g.size, max(1, int(g.size * fraction)), replace=False)) for g in net.groups}


def images(net: Network, n: int = 3, seed: int = 0) -> np.ndarray:
    """Random normal images."""
    return np.random.default_rng(seed).normal(size=(n, *net.input_shape)).astype(np.float32)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference relative to the largest output."""
    assert np.isfinite(a).all() and np.isfinite(b).all()
    assert a.std() > 1e-3 * np.abs(a).max() > 0, "outputs that are all alike would hide an error"
    return float(np.abs(a - b).max() / np.abs(b).max())


def built(symbol, input_shape, seed=0):
    """A network of a hand-made Symbol with random arrays."""
    nodes, outputs = parse_nodes(symbol.tojson())
    net = Network("net", nodes, outputs, (), drawn(symbol, input_shape, seed))
    return files.with_free_scales(replace(net, shapes=files.node_shapes(net, input_shape)))


def drawn(symbol, input_shape, seed=0):
    """Random arrays of the shapes that a Symbol needs."""
    args, _, aux = symbol.infer_shape(data=(1, *input_shape))
    shapes = {**dict(zip(symbol.list_arguments(), args)), **dict(zip(symbol.list_auxiliary_states(), aux))}
    rng = np.random.default_rng(seed)
    return {
        k: (rng.uniform(0.5, 1.5, s) if k.endswith(("gamma", "var")) else rng.normal(0, 0.5, s)).astype("float32")
        for k, s in shapes.items()
        if k != "data"
    }
