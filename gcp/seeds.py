"""Streams of random numbers: everything random follows from the configured seed, a stream and the number of a step.

Draws that must not depend on each other use different streams, so all streams are listed in one place. A stream's value
is part of the key that seeds the generator: the results of finished experiments depend on it, so it must not change.
"""

from __future__ import annotations

from enum import Enum, IntEnum, unique
from typing import Optional, Tuple, Union

import numpy as np


@unique
class Stream(Enum):
    """What is drawn, as (iteration, number): iteration 0 precedes those of a method; None: the caller gives it."""

    DENSE = (0, 0)  # order, augmentation and dropout of the dense network's training
    FINETUNE = (0, 2)  # the same for fine-tuning
    REGULARISE = (None, 1)  # the same for GCP's steps with a penalty
    RECOVER = (None, 2)  # the same for GCP's steps without a penalty
    SCORING = (None, 3)  # images and dropout for a criterion that evaluates the loss
    STATISTICS = (None, 4)  # images and dropout for recomputing batch-norm statistics
    RECONSTRUCTION = (None, 5)  # images and positions to which weights are fitted after channels are removed
    SCRATCH = (0, 6)  # new weights for a pruned network
    SPARSITY = (None, 8)  # training with a penalty on scales
    CLASSIFIERS = (None, 10)  # auxiliary classifiers, training with them, and the data by which they choose channels
    WIDTHS = (None, 7)  # random widths, and the training that shows how good they are
    SEARCH = (None, 9)  # values that a search tries
    ARCHITECTURES = (None, 12)  # a search's draws; weights and batches of candidates and of a supernet
    SLIMMABLE = (0, 11)  # weights, order, augmentation and widths of a slimmable network's training

    def seed(self, seed: int, iteration: int = 0) -> int:
        """The seed of this stream; `iteration` counts from 1 in methods that iterate."""
        fixed, number = self.value
        return hash_seed(seed, iteration if fixed is None else fixed, number)


@unique
class Apart(IntEnum):
    """Numbers that keep the keys of generators distinct; passes over the images have keys (seed, epoch)."""

    VALIDATION = 0  # (this, seed)
    MIXUP = 1  # (seed, step, this)
    CALTECH = 2  # (this, seed, label)
    SLIMMABLE = 3  # (seed, step, this)
    IMAGE = 0x1337  # (key of the pass, this, position)


def fixed_generator() -> np.random.Generator:
    """The generator for choices that all seeds share, to keep seeds comparable: which images are used at all."""
    return np.random.default_rng(0)


def validation_generator(seed: int) -> np.random.Generator:
    """The generator that decides which training images are held out for validation."""
    return np.random.default_rng((Apart.VALIDATION, seed))


def caltech_generator(seed: int, label: int) -> np.random.Generator:
    """The generator that decides which images of a class of Caltech-256 are for training."""
    return np.random.default_rng((Apart.CALTECH, seed, label))


def image_generator(seed: Union[int, Tuple[int, ...]], position: int) -> np.random.Generator:
    """The generator for one image of a pass: the same whichever thread, part or resumed run serves the image."""
    return np.random.default_rng((*(seed if isinstance(seed, tuple) else (seed,)), Apart.IMAGE, int(position)))


def step_seed(seed: int, step: int, rank: Optional[int] = None) -> int:
    """The seed of MXNet's generator (dropout) for one step, and for one rank if there are several."""
    return hash_seed(seed, step, *([] if rank is None else [rank]))


def mixup_generator(seed: int, step: int) -> np.random.Generator:
    """The generator for one step's mixing weight, the same on every rank."""
    return np.random.default_rng((seed, step, Apart.MIXUP))


def slimmable_generator(seed: int, step: int) -> np.random.Generator:
    """The generator for the widths that a slimmable step draws, the same on every rank."""
    return np.random.default_rng((seed, step, Apart.SLIMMABLE))


def hash_seed(*parts: int) -> int:
    """One 31-bit seed computed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)
