"""Batch-norm running statistics recomputed from training images, without training, as a network needs after a cut."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import islice
from typing import Dict, List

import numpy as np

from gcp.backend.blocks import to_block, to_symbol
from gcp.backend.engine import autograd, gluon, mx
from gcp.graph.channels import is_norm
from gcp.graph.network import Network
from gcp.train.distributed import device, process_group
from gcp.train.loop import Batches
from gcp.train.optimisers import DivergedError
from gcp.train.steps import seed_dropout


def recompute_statistics(net: Network, batches: Batches, n_batches: int) -> Network:
    """The network with running means and variances computed from the first `n_batches` batches.

    Each batch norm normalises by the batch, as in training; means and variances are those of all images together (the
    variance within batches plus that of the batch means), instead of a moving average, which would lag many steps
    behind (Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3). Only the forward pass is needed: every
    norm outputs its batch's mean and variance. With several ranks, each takes its part of every batch. DivergedError:
    the statistics are not finite.
    """
    norms = [n for i, n in enumerate(net.nodes) if is_norm(net, i)]
    if not norms or n_batches == 0:
        return net
    told = [replace(n, attrs={**n.attrs, "output_mean_var": "True"}) if n in norms else n for n in net.nodes]
    inside = to_symbol(replace(net, nodes=tuple(told))).get_internals()
    outputs = [inside[f"{n.name}_{what}"] for n in norms for what in ("mean", "var")]
    params = to_block(net, device(), trainable=set()).collect_params()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "input type is not inferred": the input's type is known at the first call
        block = gluon.SymbolBlock(mx.sym.Group(outputs), mx.sym.var("data"), params=params)
    block.hybridize(static_alloc=True, static_shape=True)
    sums: List[np.ndarray] = []
    for i, (x, _) in enumerate(islice(batches.since(0), n_batches)):
        seed_dropout(net, batches.seed, i)
        with autograd.train_mode():
            found = [a.asnumpy().astype(np.float64) for a in block(x)]
        for k, norm in enumerate(norms):
            mean, inverse_deviation = found[2 * k : 2 * k + 2]  # MXNet's output "var" is 1 / sqrt(var + eps)
            if not (np.isfinite(mean).all() and (inverse_deviation > 0).all()):
                wrong = f"the input of batch norm '{norm.name}' is no longer finite"
                raise DivergedError(f"statistics after a cut: {wrong}; lower prune.gcp.lr or the penalty")
            variance = np.maximum(inverse_deviation**-2 - norm.literal("eps", 1e-3), 0)
            found[2 * k + 1] = variance + mean**2
        sums = [a + b for a, b in zip(sums, found)] if sums else found
    return net.with_arrays(_averages(net, norms, sums, n_batches))


def _averages(net: Network, norms, sums: List[np.ndarray], n_batches: int) -> Dict[str, np.ndarray]:
    """The running statistics by name, from sums over the batches of means and mean squares."""
    group = process_group()
    flat = group.all_reduce_floats(np.concatenate(sums)) / (n_batches * group.world_size)
    means = np.split(flat, np.cumsum([len(s) for s in sums])[:-1])
    arrays = {}
    for norm, mean, square in zip(norms, means[::2], means[1::2]):
        names = [net.nodes[j].name for j, _ in norm.inputs[3:]]
        arrays.update(zip(names, (mean.astype(np.float32), np.maximum(square - mean**2, 0).astype(np.float32))))
    return arrays
