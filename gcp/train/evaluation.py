"""Accuracy and loss of a network on a split, summed over its images and divided once."""

from __future__ import annotations

import math
from typing import Callable, Iterable, Sequence, Tuple

import numpy as np

from gcp.backend.blocks import to_block
from gcp.backend.engine import mx
from gcp.graph.network import Network
from gcp.train.distributed import device, workers


def evaluate(net: Network, split, batch: int = 100) -> dict:
    """Accuracy and loss of a network on a split: see `evaluate_outputs`. Several workers each take a part."""
    ctx, team = device(), workers()
    block = to_block(net, ctx, trainable=set())
    return _averages(
        team.total(_sums(lambda x: block(mx.nd.array(x, ctx)).asnumpy(), split.batches(batch * team.n, part=team.part)))
    )


def evaluate_outputs(outputs: Callable[[np.ndarray], np.ndarray], split, batch: int = 100) -> dict:
    """Top-1 and top-5 accuracy (fractions), mean cross entropy and the number of images of a split.

    `outputs` is any function from images (n, 3, H, W) to logits (n, classes). Correct and seen are summed and divided
    once: the last batch is short.
    """
    return _averages(_sums(outputs, split.batches(batch)))


def _sums(outputs: Callable[[np.ndarray], np.ndarray], batches: Iterable) -> Tuple[int, int, int, float]:
    """Images, those right at first and within the first five, summed cross entropy."""
    seen, top1, top5, loss = 0, 0, 0, 0.0
    for x, y, n in batches:
        if n == 0:  # a part of a short batch that holds filling only
            continue
        output = outputs(x)[:n].astype(np.float64)
        y = y[:n]
        top = output.max(1, keepdims=True)
        log_z = top[:, 0] + np.log(np.exp(output - top).sum(1))
        of_label = output[np.arange(n), y]
        # An image counts as right when fewer than k classes score above its label; ties go by class number, as argmax.
        above = (output > of_label[:, None]).sum(1) + (
            (output == of_label[:, None]) & (np.arange(output.shape[1]) < y[:, None])
        ).sum(1)
        top1 += int((above < 1).sum())
        top5 += int((above < 5).sum())
        loss += float((log_z - of_label).sum())
        seen += n
    return seen, top1, top5, loss


def _averages(sums: Sequence[float]) -> dict:
    seen, top1, top5, loss = sums
    return {
        "top1": top1 / seen,
        "top5": top5 / seen,
        "loss": loss / seen if math.isfinite(loss) else None,
        "n_eval": int(seen),
    }
