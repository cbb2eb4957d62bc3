"""The loss of a training step: a task's loss with label smoothing, mixup and distillation from a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Optional

import numpy as np

from gcp.backend.blocks import to_block
from gcp.backend.engine import autograd, gluon, mx
from gcp.graph.network import Network
from gcp.seeds import mixup_generator
from gcp.train.distributed import device
from gcp.train.tasks import CLASSIFICATION, Task


@dataclass(frozen=True)
class Teacher:
    """A network that another one is distilled from, its weight in the loss, in (0, 1], and the temperature, above 0."""

    net: Network
    weight: float = 0.5
    temperature: float = 1.0

    @cached_property
    def block(self) -> gluon.SymbolBlock:
        """The network as a block that predicts."""
        return to_block(self.net, device(), trainable=set())


@dataclass(frozen=True)
class Objective:
    """What a training step minimises: the task's loss, with label smoothing, mixup and distillation.

    Mixup is that of Zhang et al. 2018 as used to train GluonCV's networks: one `lam` per step, from Beta(alpha, alpha),
    for the whole batch. Each image is mixed with its neighbour (0 with 1, 2 with 3, ...), which makes random pairs, so
    that a batch divided among devices is mixed like a whole one. With a teacher (Hinton et al. 2015), which predicts on
    the mixed images, the loss is `(1 - w) loss + w distilled loss`.
    """

    task: Task = CLASSIFICATION
    label_smoothing: float = 0.0
    mixup: float = 0.0
    teacher: Optional[Teacher] = None

    def __call__(self, block, x: mx.nd.NDArray, y: mx.nd.NDArray, seed: int, step: int) -> mx.nd.NDArray:
        """The loss per image, shape (batch,), recorded by autograd; draws depend only on the seed and the step."""
        lam, other = mixup_share(self.mixup, seed, step), None
        if lam < 1:
            partner = neighbours(len(x), x.context)
            x, other = lam * x + (1 - lam) * x.take(partner), y.take(partner)
        taught = None if self.teacher is None else self.teacher.block(x)
        with autograd.record():
            output = block(x)
            loss = self.task.loss(output, y, self.label_smoothing)
            if other is not None:
                loss = lam * loss + (1 - lam) * self.task.loss(output, other, self.label_smoothing)
            if taught is not None:
                w = self.teacher.weight
                loss = (1 - w) * loss + w * self.task.distilled_loss(output, taught, self.teacher.temperature)
        return loss


def mixup_share(alpha: float, seed: int, step: int) -> float:
    """The weight of a step's images relative to their partners, from Beta(alpha, alpha); 1 without mixup."""
    return float(mixup_generator(seed, step).beta(alpha, alpha)) if alpha else 1.0


def neighbours(n: int, ctx: mx.Context) -> mx.nd.NDArray:
    """The mixup partners in a batch of n images: 1, 0, 3, 2, ...; if n is odd, the last is its own partner."""
    return mx.nd.array(np.minimum(np.arange(n) ^ 1, n - 1), ctx, dtype="int32")
