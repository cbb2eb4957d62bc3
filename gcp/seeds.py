"""Streams of random numbers: everything random follows from the configured seed, a stream and the number of a step.

Two draws that must not depend on each other take different streams, so the streams are listed in one place. A value
is a position in the key that seeds the generator; it decides numbers of finished experiments and must not change.
"""

from __future__ import annotations

from enum import Enum
from typing import Optional

import numpy as np


class Stream(Enum):
    """What is drawn, as (iteration, number): iteration 0 lies before any method's own, None is the caller's."""

    DENSE = (0, 0)  # order, augmentation and dropout of the dense network's training
    FINETUNE = (0, 2)  # of fine-tuning
    REGULARISE = (None, 1)  # of GCP's steps with penalty
    RECOVER = (None, 2)  # of GCP's steps without
    SCORING = (None, 3)  # images and dropout of a criterion that looks at the loss
    STATISTICS = (None, 4)  # images and dropout of recomputed batch-norm statistics

    def seed(self, seed: int, iteration: int = 0) -> int:
        """The seed of this stream; `iteration` counts from 1 where a method repeats itself."""
        fixed, number = self.value
        return hash_seed(seed, iteration if fixed is None else fixed, number)


MIXUP = 1  # third number of a key whose first two are seed and step; keys of passes over the images are pairs


def step_seed(seed: int, step: int, rank: Optional[int] = None) -> int:
    """The seed of MXNet's generator (dropout) in one step; of one of several ranks, where there are several."""
    return hash_seed(seed, step, *([] if rank is None else [rank]))


def mixup_generator(seed: int, step: int) -> np.random.Generator:
    """The generator of one step's mixing weight, the same on every rank."""
    return np.random.default_rng((seed, step, MIXUP))


def hash_seed(*parts: int) -> int:
    """One 31-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)
