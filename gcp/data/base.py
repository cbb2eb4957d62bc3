"""What a data set is: its options, its three splits, and their batches `(x, y, n_valid)`, as numpy arrays.

Images are kept as uint8, or decoded when they are needed, and become normalised float32, channels first, batch by
batch. The validation images are held out from the training images; no choice may be based on the test images.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Annotated, Any, Callable, ClassVar, Iterator, Literal, NamedTuple, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator

from gcp.data.decode import Decoded, Pictures, crop_box, in_order, shifted, shifts, varied
from gcp.errors import UserError
from gcp.options import Options, listed
from gcp.registry import Registry
from gcp.seeds import fixed_generator, image_generator, validation_generator

Seed = Union[int, Tuple[int, ...]]
Side = Annotated[int, Field(ge=1, le=4096)]

_CHUNK = 8  # images that a thread decodes at a time
_BATCHES_AHEAD = 3


# Options


class Data(Options):
    """The keys that every data set has; further keys of each are listed under its name, at the end of this page."""

    # Each data set has its own class, derived from this one; validating values as `Data` gives an instance of the one
    # that their name selects.
    LABELLED: ClassVar[bool] = True  # False: a network's predictions serve as labels

    name: str = Field(description="the data set")
    input: Tuple[Annotated[int, Field(ge=3, le=3)], Side, Side] = Field(
        (3, 32, 32), description="a list of channels, height, width, such as [3, 32, 32]"
    )
    batch: int = Field(64, ge=1, le=2**16, description="images per training batch")
    n_train: Optional[int] = Field(
        None, ge=2, le=10**8, description="limit on the training images, including those held out for validation"
    )
    validation: float = Field(
        0.1, ge=0.01, le=0.5, description="fraction of the training images held out for validation, in [0.01, 0.5]"
    )
    augment: Literal["none", "crop", "crop_flip", "imagenet"] = Field(
        "none", description="random changes to training images"
    )

    _lists = field_validator("input", mode="before")(listed)

    def known_size(self) -> Tuple[int, int]:
        """Numbers of classes and of training images, without opening an image. Raises UserError if they are unknown."""
        raise NotImplementedError

    @model_validator(mode="wrap")
    @classmethod
    def _by_name(cls, values: Any, handler: ModelWrapValidatorHandler[Data]) -> Data:
        if cls is not Data or not isinstance(values, dict) or values.get("name") not in tuple(DATASETS):
            return handler(values)
        name, kept = values["name"], dict(values)
        for key in [key for key in values if key not in DATASETS.options[name].model_fields]:
            others = [other for other in DATASETS if key in DATASETS.options[other].model_fields]
            if others and kept.pop(key) is not None:  # `--set data.root=null` removes the value in a base
                raise ValueError(
                    f"{key} is for name: {' or '.join(others)}, and {name} does not take it; remove data.{key}"
                )
        return DATASETS.options[name].model_validate(kept)

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if value not in DATASETS:
            *names, last = map(repr, DATASETS)
            raise ValueError(f"should be {', '.join(names)} or {last}")
        return value


DATASETS: Registry[Callable[[Data, int], Dataset]] = Registry("data set")


# Splits


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Some rows of a store of images, served in batches.

    `images[rows]` gives uint8 (n, 3, H, W), or (n, 1, H, W) if the three channels are equal; `labels` (of all rows) are
    int32; `mean` and `std` are per channel, in units of the uint8 values.
    """

    images: Union[np.ndarray, Decoded, Pictures]
    labels: np.ndarray
    rows: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Split({len(self)} images)"

    def n_batches(self, size: int) -> int:
        """Number of batches of `size` images in one pass, including the last one even if it is not full."""
        return -(-len(self) // size)

    def batches(
        self,
        size: int,
        *,
        seed: Optional[Seed] = None,
        augment: str = "none",
        part: Tuple[int, int] = (0, 1),
        first: int = 0,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """One pass as (x float32 (size, 3, H, W) normalised, y int32 (size,), n_valid), from batch `first` on.

        With a seed, for training: it determines the order and the augmentation (none, crop, crop_flip, imagenet),
        whatever the number of threads. The last batch is filled up from the start of the order, and every image counts.
        Without a seed, for evaluation: images come in order, the last batch is filled up by repeating the last image,
        and only the first n_valid images count.
        `part=(rank, n)` gives the rank-th of n equal slices of each of these batches, with its own n_valid. Images on a
        disk are decoded a few batches ahead, in threads; close the generator to stop them early.
        Raises UserError for an image that cannot be read or a size that n does not divide, and ValueError for
        augmentation without a seed.
        """
        rank, n_parts = part
        if size % n_parts:
            fix = f"set data.batch to a multiple of {n_parts}"
            raise UserError(f"a batch of {size} images cannot be divided into {n_parts} equal parts; {fix}")
        if seed is None and augment != "none":
            raise ValueError("augmentation needs a seed")
        plans = self._plans(size, seed, augment, slice(rank * size // n_parts, (rank + 1) * size // n_parts), first)
        if isinstance(self.images, Pictures):
            return self._from_disk(plans, size // n_parts, seed, augment)
        return self._from_memory(plans, seed, augment)

    def _plans(self, size: int, seed: Optional[Seed], augment: str, part: slice, first: int) -> Iterator[_Plan]:
        n, n_padded = len(self), self.n_batches(size) * size
        if seed is None:
            order = np.minimum(np.arange(n_padded), n - 1)
        else:
            rng = np.random.default_rng(seed)
            order = np.resize(rng.permutation(n), n_padded)  # np.resize repeats from the start
        for number, start in enumerate(range(0, n_padded, size)):
            moves = None
            if augment in ("crop", "crop_flip"):  # one generator draws for all batches, even those not served
                moves = shifts(size, self.images.shape[-2:], augment == "crop_flip", rng)[part]
            if number >= first:
                n_valid = size if seed is not None else min(size, n - start)
                positions = np.arange(start, start + size)[part]
                n_valid = int(np.clip(n_valid - part.start, 0, len(positions)))
                yield _Plan(self.rows[order[positions]], positions, moves, n_valid)

    def _from_memory(self, plans: Iterator[_Plan], seed: Optional[Seed], augment: str) -> Iterator[tuple]:
        for plan in plans:
            images = self.images[plan.rows]
            if plan.moves is not None:
                images = shifted(images, plan.moves)
            elif augment == "imagenet":
                each = zip(images, plan.positions)
                images = np.stack([_varied_again(image, image_generator(seed, place)) for image, place in each])
            x = np.empty((len(images), 3, *images.shape[2:]), np.float32)
            self._normalise(images, x)
            yield x, self.labels[plan.rows], plan.n_valid

    def _from_disk(self, plans: Iterator[_Plan], size: int, seed: Optional[Seed], augment: str) -> Iterator[tuple]:
        images = self.images

        def chunks() -> Iterator[tuple]:
            for plan in plans:
                x = np.empty((len(plan.rows), *images.shape), np.float32)
                for start in range(0, len(x), _CHUNK):
                    yield plan, x, start

        def fill(chunk: tuple) -> tuple:
            plan, x, start = chunk
            for k in range(start, min(start + _CHUNK, len(x))):
                if augment == "imagenet":
                    image = images.varied(plan.rows[k], image_generator(seed, plan.positions[k]))
                else:
                    image = images.image(plan.rows[k])
                    if plan.moves is not None:
                        image = shifted(image[None], plan.moves[k : k + 1])[0]
                self._normalise(image, x[k])
            return plan, x, start

        n_ahead = max(images.workers, _BATCHES_AHEAD * -(-size // _CHUNK))
        with closing(in_order(fill, chunks(), images.workers, n_ahead)) as filled:
            for plan, x, start in filled:
                if start + _CHUNK >= len(x):  # chunks come in order, so the last one completes its batch
                    yield x, self.labels[plan.rows], plan.n_valid

    def _normalise(self, images: np.ndarray, x: np.ndarray) -> None:
        """Write uint8 (..., 1 or 3, H, W) into float32 `x` (..., 3, H, W)."""
        x[:] = images  # copies a single channel to all three
        x -= self.mean[:, None, None]
        x *= (1 / self.std)[:, None, None]


class _Plan(NamedTuple):
    """One batch before its images are loaded: rows of the store, positions in the pass, and what `shifted` is to do."""

    rows: np.ndarray
    positions: np.ndarray
    moves: Optional[np.ndarray]
    n_valid: int


def _varied_again(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The ImageNet recipe applied to an image in memory, uint8 (1 or 3, H, W): uint8 (3, H, W)."""
    size = image.shape[1:]
    whole = np.ascontiguousarray(np.broadcast_to(image, (3, *size))[::-1].transpose(1, 2, 0))
    return varied(whole, crop_box(*size, rng), size, rng)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set at one input size: name, input shape (3, H, W), class names by label, and three splits.

    `skipped` says, for each image that was left out, what is wrong with it. Leaving out images does not change how the
    others are divided, only the order of a pass.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    skipped: tuple[str, ...] = ()
    task: str = "classification"  # what networks are trained for: a name in `gcp.train.tasks.TASKS`


# Dividing


def spread(labels: np.ndarray, n_chosen: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows of `n_chosen` random images, spread evenly over the classes."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[(2 * np.arange(n_chosen) + 1) * len(labels) // (2 * n_chosen)])


def capped(labels: np.ndarray, n_train: int | None) -> np.ndarray:
    """Sorted rows of the training images in use: the same for every seed, so that seeds can be compared."""
    if n_train is None or n_train >= len(labels):
        return np.arange(len(labels))
    return spread(labels, n_train, fixed_generator())


def held_out(labels: np.ndarray, rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`rows` divided into rows for training and rows for validation."""
    n_held = max(1, round(len(rows) * fraction))
    held = np.zeros(len(rows), bool)
    held[spread(labels[rows], n_held, validation_generator(seed))] = True
    return rows[~held], rows[held]


# Grey images that fit into memory


def from_arrays(
    data: Data,
    seed: int,
    classes: Sequence[str],
    train: Tuple[np.ndarray, np.ndarray],
    test: Tuple[np.ndarray, np.ndarray],
) -> Dataset:
    """A data set from grey images in memory: (images uint8 (n, h, w), labels (n,)) for training and for testing."""
    # Over all training images as stored, so that they do not depend on input size, n_train and seed.
    moments = cv2.meanStdDev(train[0].reshape(len(train[0]), -1))
    mean, std = (np.full(3, value.item(), np.float32) for value in moments)
    kept = capped(train[1], data.n_train)
    images, labels = _sized(train[0][kept], data.input), train[1][kept].astype(np.int32)
    rows = held_out(labels, np.arange(len(kept)), data.validation, seed)
    test_images, test_labels = _sized(test[0], data.input), test[1].astype(np.int32)
    splits = [Split(images, labels, part, mean, std) for part in rows]
    splits.append(Split(test_images, test_labels, np.arange(len(test_labels)), mean, std))
    return Dataset(data.name, data.input, tuple(classes), *splits)


def _sized(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Grey images (n, h, w) as (n, 1, H, W): 28 px padded with black to 32, any other size resized bilinearly."""
    size = shape[1:]
    if images.shape[1:] == (28, 28) and size == (32, 32):
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    elif images.shape[1:] != size:
        images = np.stack([cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR) for image in images])
    return images[:, None]
