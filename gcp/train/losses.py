"""The loss of a training step: cross entropy, label smoothing, mixup, a teacher beside the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from gcp.backend.blocks import to_block
from gcp.backend.engine import autograd, mx
from gcp.graph.network import Network


def smoothed_loss(output: mx.nd.NDArray, labels: mx.nd.NDArray, smoothing: float) -> mx.nd.NDArray:
    """Cross entropy per image, shape (batch,), against labels smoothed towards the uniform distribution."""
    log_p = mx.nd.log_softmax(output)
    loss = -mx.nd.pick(log_p, labels)
    return loss if smoothing == 0 else (1 - smoothing) * loss - smoothing * log_p.mean(axis=1)


@dataclass(frozen=True)
class Teacher:
    """A network that another learns from: its part of the loss in (0, 1], and the temperature above 0."""

    net: Network
    weight: float = 0.5
    temperature: float = 1.0


class Objective:
    """The loss of a training step: cross entropy with smoothed labels, images mixed, a teacher beside the labels.

    Mixup is of Zhang et al. 2018 as GluonCV trains its networks with: one `lam` a step, from Beta(alpha, alpha), for
    the whole batch; an image is mixed with its neighbour (0 with 1, 2 with 3, ...), which are a random pair, so that
    a batch divided among devices is mixed as one. With a teacher (Hinton et al. 2015) the loss is
    `(1 - w) CE + w T^2 KL(softmax(teacher / T) || softmax(student / T))`; it sees the mixed images, and predicts.
    """

    def __init__(
        self,
        ctx: mx.Context,
        seed: int,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        teacher: Optional[Teacher] = None,
    ) -> None:
        self._seed, self._smoothing, self._mixup, self._teacher = seed, label_smoothing, mixup, teacher
        self._teacher_block = to_block(teacher.net, ctx, trainable=set()) if teacher is not None else None

    def __call__(self, block, x: mx.nd.NDArray, y: mx.nd.NDArray, step: int) -> mx.nd.NDArray:
        """The loss per image, shape (batch,), recorded; what is drawn depends on the seed and the step alone."""
        lam, other = mixup_share(self._mixup, self._seed, step), None
        if lam < 1:
            partner = neighbours(len(x), x.context)
            x, other = lam * x + (1 - lam) * x.take(partner), y.take(partner)
        taught = None if self._teacher is None else self._teacher_block(x)
        with autograd.record():
            output = block(x)
            loss = smoothed_loss(output, y, self._smoothing)
            if other is not None:
                loss = lam * loss + (1 - lam) * smoothed_loss(output, other, self._smoothing)
            if taught is not None:
                w = self._teacher.weight
                loss = (1 - w) * loss + w * distilled_loss(output, taught, self._teacher.temperature)
        return loss


def mixup_share(alpha: float, seed: int, step: int) -> float:
    """The weight of a step's images against their partners', from Beta(alpha, alpha); 1 without mixup."""
    # The third number keeps the draw apart from those of the batches, whose seeds are pairs.
    return float(np.random.default_rng((seed, step, 1)).beta(alpha, alpha)) if alpha else 1.0


def neighbours(n: int, ctx: mx.Context) -> mx.nd.NDArray:
    """Partners in a batch of n: 1, 0, 3, 2, ...; the last of an odd number is its own."""
    return mx.nd.array(np.minimum(np.arange(n) ^ 1, n - 1), ctx, dtype="int32")


def distilled_loss(output: mx.nd.NDArray, taught: mx.nd.NDArray, temperature: float) -> mx.nd.NDArray:
    """T^2 KL(softmax(taught / T) || softmax(output / T)) per image, shape (batch,) (Hinton et al. 2015, section 2)."""
    log_p = mx.nd.log_softmax(taught / temperature)
    log_q = mx.nd.log_softmax(output / temperature)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(axis=1)
