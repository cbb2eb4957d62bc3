"""Streams of random numbers: everything random follows from the configured seed, a stream and the number of a step.

Two draws that must not depend on each other take different streams, so the streams are listed in one place. A value
is a position in the key that seeds the generator; it decides numbers of finished experiments and must not change.
"""

from __future__ import annotations

from enum import Enum, IntEnum, unique
from typing import Optional, Tuple, Union

import numpy as np


@unique
class Stream(Enum):
    """What is drawn, as (iteration, number): iteration 0 lies before any method's own, None is the caller's."""

    DENSE = (0, 0)  # order, augmentation and dropout of the dense network's training
    FINETUNE = (0, 2)  # of fine-tuning
    REGULARISE = (None, 1)  # of GCP's steps with penalty
    RECOVER = (None, 2)  # of GCP's steps without
    SCORING = (None, 3)  # images and dropout of a criterion that looks at the loss
    STATISTICS = (None, 4)  # images and dropout of recomputed batch-norm statistics
    RECONSTRUCTION = (None, 5)  # images and places that weights are fitted to after a cut
    SCRATCH = (0, 6)  # new weights for a pruned network
    SPARSITY = (None, 8)  # training with a penalty on scales
    CLASSIFIERS = (None, 10)  # auxiliary classifiers, the training with them, and what they choose by
    WIDTHS = (None, 7)  # widths at random, and the training that tells how good they are
    SEARCH = (None, 9)  # values of a search's trials
    ARCHITECTURES = (None, 12)  # what a search draws, candidates' weights and batches, a supernet's
    SLIMMABLE = (0, 11)  # weights, order, augmentation and widths of a slimmable network's training

    def seed(self, seed: int, iteration: int = 0) -> int:
        """The seed of this stream; `iteration` counts from 1 where a method repeats itself."""
        fixed, number = self.value
        return hash_seed(seed, iteration if fixed is None else fixed, number)


@unique
class Apart(IntEnum):
    """Numbers that keep the keys of generators apart; the keys of passes over the images are (seed, epoch)."""

    VALIDATION = 0  # (this, seed)
    MIXUP = 1  # (seed, step, this)
    CALTECH = 2  # (this, seed, label)
    SLIMMABLE = 3  # (seed, step, this)
    IMAGE = 0x1337  # (key of the pass, this, position)


def fixed_generator() -> np.random.Generator:
    """For choices that are the same for every seed, so that seeds can be compared: which images are used at all."""
    return np.random.default_rng(0)


def validation_generator(seed: int) -> np.random.Generator:
    """The generator of which training images are held out."""
    return np.random.default_rng((Apart.VALIDATION, seed))


def caltech_generator(seed: int, label: int) -> np.random.Generator:
    """The generator of which images of a class of Caltech-256 are to train on."""
    return np.random.default_rng((Apart.CALTECH, seed, label))


def image_generator(seed: Union[int, Tuple[int, ...]], position: int) -> np.random.Generator:
    """The generator of one image of a pass: the same in whichever thread, part or resumed run it is served."""
    return np.random.default_rng((*(seed if isinstance(seed, tuple) else (seed,)), Apart.IMAGE, int(position)))


def step_seed(seed: int, step: int, rank: Optional[int] = None) -> int:
    """The seed of MXNet's generator (dropout) in one step; of one of several ranks, where there are several."""
    return hash_seed(seed, step, *([] if rank is None else [rank]))


def mixup_generator(seed: int, step: int) -> np.random.Generator:
    """The generator of one step's mixing weight, the same on every rank."""
    return np.random.default_rng((seed, step, Apart.MIXUP))


def slimmable_generator(seed: int, step: int) -> np.random.Generator:
    """The generator of the widths that a slimmable step draws, the same on every rank."""
    return np.random.default_rng((seed, step, Apart.SLIMMABLE))


def hash_seed(*parts: int) -> int:
    """One 31-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)
