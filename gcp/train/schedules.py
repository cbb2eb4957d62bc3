"""Learning rates by step."""

from __future__ import annotations

import math
from typing import Callable, Sequence


def cosine(lr: float, n_steps: int, n_warmup: int = 0) -> Callable[[int], float]:
    """Learning rate of step i: linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017, no restarts)."""

    def at(i: int) -> float:
        if i < n_warmup:
            return lr * (i + 1) / n_warmup
        return lr * 0.5 * (1 + math.cos(math.pi * (i - n_warmup) / max(1, n_steps - n_warmup)))

    return at


def steps(lr: float, at: Sequence[int], factor: float, n_warmup: int = 0) -> Callable[[int], float]:
    """Learning rate of step i: linear warm-up, then `lr`, multiplied by `factor` from each step of `at` on."""

    def rate(i: int) -> float:
        return lr * (i + 1) / n_warmup if i < n_warmup else lr * factor ** sum(i >= step for step in at)

    return rate


def constant(lr: float) -> Callable[[int], float]:
    """The same learning rate at every step."""
    return lambda i: lr
