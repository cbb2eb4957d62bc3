"""Learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Sequence


@dataclass(frozen=True)
class Schedule:
    """The length of a training in steps, and the learning rate of each step, counted from 0."""

    n_steps: int
    rate: Callable[[int], float]

    def __call__(self, i: int) -> float:
        """The learning rate of step i."""
        return self.rate(i)


def constant(lr: float, n_steps: int) -> Schedule:
    """The same learning rate at every step."""
    return Schedule(n_steps, lambda i: lr)


def cosine(lr: float, n_steps: int, n_warmup: int = 0) -> Schedule:
    """Linear warm-up, then a half cosine down to zero (Loshchilov & Hutter 2017, without restarts)."""

    def after(i: int) -> float:
        return lr * 0.5 * (1 + math.cos(math.pi * (i - n_warmup) / max(1, n_steps - n_warmup)))

    return _warmed_up(lr, n_steps, n_warmup, after)


def steps(lr: float, n_steps: int, at: Sequence[int], factor: float, n_warmup: int = 0) -> Schedule:
    """Linear warm-up, then `lr`, which is multiplied by `factor` at each of the steps `at`."""
    return _warmed_up(lr, n_steps, n_warmup, lambda i: lr * factor ** sum(i >= step for step in at))


def _warmed_up(lr: float, n_steps: int, n_warmup: int, after: Callable[[int], float]) -> Schedule:
    return Schedule(n_steps, lambda i: lr * (i + 1) / n_warmup if i < n_warmup else after(i))
