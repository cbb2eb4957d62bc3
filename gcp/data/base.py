"""Data sets: a name in, training, validation and test batches `(x, y, n_valid)` out, as numpy arrays.

Images are kept as uint8, or decoded when their turn comes, and become normalised float32, channels first, batch by
batch. The validation images are held out of the training images; the test images are nobody's to choose by.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import struct
import sys
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from tqdm import tqdm

from gcp.data.images import (
    BadImage,
    Files,
    Members,
    Pictures,
    Records,
    class_folders,
    classes_of,
    crop_box,
    in_order,
    place_of,
    read_classes,
    safe_members,
    shifted,
    shifts,
    varied,
)
from gcp.data.options import Data
from gcp.errors import UserError
from gcp.storage import replacing, turn, write_json

Seed = Union[int, Tuple[int, ...]]

_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
_IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32) * 255
_PER_IMAGE = 0x1337  # sets the seeds of single images apart from those of passes
_CHUNK = 8  # images that a thread decodes at a time
_BATCHES_AHEAD = 3


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Some rows of a store of images, served in batches.

    `images[rows]` gives uint8 (n, 3, H, W), or (n, 1, H, W) where the three channels are equal; `labels` (of
    all rows) are int32; `mean` and `std` are per channel, in units of the uint8 values.
    """

    images: Union[np.ndarray, Pictures]
    labels: np.ndarray
    rows: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Split({len(self)} images)"

    def n_batches(self, size: int) -> int:
        """Number of batches of `size` images that one pass takes, the last one counted whole."""
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

        With a seed, for training: it decides order and augmentation (none, crop, crop_flip, imagenet), whatever the
        threads, and the last batch is filled up from the start of the order; every image counts. Without, for
        evaluation: in order, the last batch filled up by repeating the last image; the first n_valid count.
        `part=(rank, n)` gives the rank-th of n equal slices of each of these batches, with its own n_valid.
        Images that lie on a disk are decoded a few batches ahead, in threads; close the generator to end them early.
        UserError: an image that cannot be read; a size that n does not divide.
        """
        rank, n_parts = part
        if size % n_parts:
            raise UserError(
                f"a batch of {size} images cannot be divided into {n_parts} equal parts; set data.batch to "
                f"a multiple of {n_parts}"
            )
        if not 0 <= rank < n_parts:
            raise ValueError(f"part {rank} of {n_parts}")
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
            if augment in ("crop", "crop_flip"):  # drawn from the one generator even for batches that are not served
                moves = shifts(size, self.images.shape[-2:], augment == "crop_flip", rng)[part]
            if number >= first:
                n_valid = size if seed is not None else min(size, n - start)
                positions = np.arange(start, start + size)[part]
                yield _Plan(
                    self.rows[order[positions]],
                    positions,
                    moves,
                    int(np.clip(n_valid - part.start, 0, part.stop - part.start)),
                )

    def _from_memory(self, plans: Iterator[_Plan], seed: Optional[Seed], augment: str) -> Iterator[tuple]:
        for plan in plans:
            images = self.images[plan.rows]
            if plan.moves is not None:
                images = shifted(images, plan.moves)
            elif augment == "imagenet":
                images = np.stack(
                    [_varied_again(image, _of_image(seed, position)) for image, position in zip(images, plan.positions)]
                )
            n, _, height, width = images.shape
            x = np.empty((n, 3, height, width), np.float32)
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
                    image = images.varied(plan.rows[k], _of_image(seed, plan.positions[k]))
                else:
                    image = images.image(plan.rows[k])
                    if plan.moves is not None:
                        image = shifted(image[None], plan.moves[k : k + 1])[0]
                self._normalise(image, x[k])
            return plan, x, start

        n_ahead = max(images.workers, _BATCHES_AHEAD * -(-size // _CHUNK))
        with closing(in_order(fill, chunks(), images.workers, n_ahead)) as filled:
            for plan, x, start in filled:
                if start + _CHUNK >= len(x):  # chunks come in order: with its last one a batch is whole
                    yield x, self.labels[plan.rows], plan.n_valid

    def _normalise(self, images: np.ndarray, x: np.ndarray) -> None:
        """Write uint8 (..., 1 or 3, H, W) into float32 `x` (..., 3, H, W)."""
        x[:] = images  # copies a single channel to all three
        x -= self.mean[:, None, None]
        x *= (1 / self.std)[:, None, None]


@dataclass(frozen=True, eq=False)
class _Plan:
    """One batch before its images are there: rows of the store, places in the pass, what `shifted` is to do."""

    rows: np.ndarray
    positions: np.ndarray
    moves: Optional[np.ndarray]
    n_valid: int


def _of_image(seed: Seed, position: int) -> np.random.Generator:
    """The generator of one image of a pass: the same in whichever thread, part or resumed run it is served."""
    return np.random.default_rng((*(seed if isinstance(seed, tuple) else (seed,)), _PER_IMAGE, int(position)))


def _varied_again(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The ImageNet recipe on an image in memory, uint8 (1 or 3, H, W): uint8 (3, H, W)."""
    size = image.shape[1:]
    whole = np.ascontiguousarray(np.broadcast_to(image, (3, *size))[::-1].transpose(1, 2, 0))
    return varied(whole, crop_box(*size, rng), size, rng)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set at one input size: name, input shape (3, H, W), class names by label, and three splits.

    `skipped` says of each image that was left out what is wrong with it. That changes nothing in how the others are
    divided, but the order of a pass.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    skipped: tuple[str, ...] = ()


def load(cfg: Data, seed: int = 0) -> Dataset:
    """The data set that `cfg` names. `seed` only decides which training images are held out to validate.

    In Caltech-256, where nobody has said which images are for training, it decides that, too.
    UserError: files that are missing, unreadable, truncated or contradict each other, with the path.
    """
    return {
        "digits": _digits,
        "fashion_mnist": _fashion_mnist,
        "folder": _classified,
        "imagenet": _classified,
        "caltech256": _caltech256,
    }[cfg.name](cfg, seed)


# Dividing


def _spread(labels: np.ndarray, n_chosen: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows of `n_chosen` random images, spread evenly over the classes."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[(2 * np.arange(n_chosen) + 1) * len(labels) // (2 * n_chosen)])


def _capped(labels: np.ndarray, n_train: int | None) -> np.ndarray:
    """Sorted rows of the training images in use: the same for every seed, so that seeds can be compared."""
    if n_train is None or n_train >= len(labels):
        return np.arange(len(labels))
    return _spread(labels, n_train, np.random.default_rng(0))


def _held_out(labels: np.ndarray, rows: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`rows` divided into those to train on and those to validate on."""
    n_held = max(1, round(len(rows) * fraction))
    held = np.zeros(len(rows), bool)
    held[_spread(labels[rows], n_held, np.random.default_rng((0, seed)))] = True
    return rows[~held], rows[held]


# Grey images that fit into memory: digits and Fashion-MNIST


def _grey_dataset(
    cfg: Data,
    seed: int,
    classes: Sequence[str],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
) -> Dataset:
    """From (images uint8 (n, h, w), labels (n,)) pairs."""
    # Over all training images as they are stored, so that input size, n_train and seed change nothing.
    moments = cv2.meanStdDev(train[0].reshape(len(train[0]), -1))
    mean, std = (np.full(3, value.item(), np.float32) for value in moments)
    kept = _capped(train[1], cfg.n_train)
    images, labels = _sized(train[0][kept], cfg.input), train[1][kept].astype(np.int32)
    held_in, held_out = _held_out(labels, np.arange(len(kept)), cfg.validation, seed)
    test_images, test_labels = _sized(test[0], cfg.input), test[1].astype(np.int32)
    return Dataset(
        cfg.name,
        cfg.input,
        tuple(classes),
        Split(images, labels, held_in, mean, std),
        Split(images, labels, held_out, mean, std),
        Split(test_images, test_labels, np.arange(len(test_labels)), mean, std),
    )


def _sized(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Grey images (n, h, w) as (n, 1, H, W): 28 px framed with black to 32, any other size bilinearly."""
    size = shape[1:]
    if images.shape[1:] == (28, 28) and size == (32, 32):
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    elif images.shape[1:] != size:
        resized = np.empty((len(images), *size), np.uint8)
        for image, out in zip(images, resized):
            out[:] = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        images = resized
    return images[:, None]


def _digits(cfg: Data, seed: int) -> Dataset:
    from sklearn.datasets import load_digits  # takes a second to import; only this data set needs it

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    tested = np.zeros(len(images), bool)
    tested[_spread(bunch.target, len(images) // 5, np.random.default_rng(0))] = True
    return _grey_dataset(
        cfg,
        seed,
        [str(name) for name in bunch.target_names],
        (images[~tested], bunch.target[~tested]),
        (images[tested], bunch.target[tested]),
    )


_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "~/.mxnet/datasets/fashion-mnist")


def _fashion_mnist(cfg: Data, seed: int) -> Dataset:
    root = _fashion_root(cfg.root)
    train, test = (_read_idx_pair(root / images, root / labels) for images, labels in _FASHION_FILES.values())
    return _grey_dataset(cfg, seed, _FASHION_CLASSES, train, test)


def _fashion_root(given: str | None) -> Path:
    """The folder with the four files: the given one, else Debian's or MXNet's, else after a download."""

    def lacking(folder: Path) -> list[str]:
        return [name for pair in _FASHION_FILES.values() for name in pair if not (folder / name).is_file()]

    if given is not None:
        root = Path(given).expanduser()
        if lacking(root):
            raise UserError(
                f"{root}: Fashion-MNIST file {lacking(root)[0]} is not there; "
                f"data.root should hold {', '.join(sum(_FASHION_FILES.values(), ()))}"
            )
        return root
    folders = [Path(folder).expanduser() for folder in _FASHION_FOLDERS]
    for folder in folders:
        if not lacking(folder):
            return folder
    try:
        from mxnet.gluon.data.vision import FashionMNIST  # noqa: TID251

        FashionMNIST(str(folders[-1]), train=True)
        FashionMNIST(str(folders[-1]), train=False)
    except (ImportError, OSError, RuntimeError) as error:  # requests' errors are OSErrors
        raise UserError(
            f"Fashion-MNIST is not in {' or '.join(map(str, folders))} and cannot be downloaded "
            f"({type(error).__name__}); install Debian's package dataset-fashion-mnist, or put "
            "its four .gz files into a folder and set data.root to it"
        ) from error
    return folders[-1]


def _read_idx_pair(image_path: Path, label_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _read_idx(image_path, 3), _read_idx(label_path, 1)
    if len(images) != len(labels):
        raise UserError(
            f"{label_path}: holds {len(labels)} labels for the {len(images)} images of "
            f"{image_path.name}; the two files should come from the same copy of the data set"
        )
    if labels.max() >= len(_FASHION_CLASSES):
        raise UserError(f"{label_path}: holds the label {labels.max()}; Fashion-MNIST has labels 0 to 9")
    return images, labels


def _read_idx(path: Path, n_dims: int) -> np.ndarray:
    """The uint8 array in a gzipped IDX file: a magic number, the big-endian sizes, the bytes."""

    def unusable(why: str) -> UserError:
        return UserError(f"{path}: {why}; replace it with a whole copy")

    try:
        with gzip.open(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise unusable(f"truncated or not a gzip file ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    n_header = 4 + 4 * n_dims
    if content[:4] != bytes((0, 0, 8, n_dims)):  # 8: unsigned bytes
        start = content[:4].hex() or "nothing"
        raise unusable(f"not an IDX file of {n_dims}-dimensional bytes (it starts with {start})")
    if len(content) < n_header:
        raise unusable("truncated within its header")
    sizes = struct.unpack(f">{n_dims}I", content[4:n_header])
    n_expected = int(np.prod(sizes, dtype=object))
    if n_expected == 0 or len(content) - n_header != n_expected:
        raise unusable(f"says it holds {'x'.join(map(str, sizes))} bytes but holds {len(content) - n_header}")
    return np.frombuffer(content, np.uint8, offset=n_header).reshape(sizes)


# Encoded images in classes: folders, RecordIO, Caltech-256

_MEMORY_LIMIT = 2 * 10**9  # bytes of decoded images; a larger data set is decoded anew in every pass


@dataclass(frozen=True, eq=False)
class _Store:
    """Images with their labels (int32), as they lie on the disk."""

    pictures: Pictures
    labels: np.ndarray


def _classified(cfg: Data, seed: int) -> Dataset:
    """Class folders `root/train/<class>`, `root/test|val/<class>`, or RecordIO `root/train.rec`, `test.rec|val.rec`."""
    root = Path(cfg.root).expanduser()
    kinds = [suffix for suffix in ("", ".rec") if (root / f"train{suffix}").exists()]
    if len(kinds) == 2:
        raise UserError(
            f"{root}: holds both train/ and train.rec; move one of them away, so that it is clear which "
            "images are meant"
        )
    tests = [root / (name + suffix) for suffix in kinds for name in ("test", "val")]
    test = next((path for path in tests if path.exists()), None)
    if test is None:
        fix = (
            "; get the ILSVRC2012 archives from image-net.org and run scripts/prepare.py imagenet"
            if cfg.name == "imagenet"
            else ""
        )
        raise UserError(
            f"{root}: should hold the folders train and test (or val), each with one per class, or "
            f"train.rec and test.rec (or val.rec) with their .idx{fix}"
        )
    train = root / f"train{kinds[0]}"
    classes, stores = (_open_records if kinds == [".rec"] else _open_folders)(cfg, train, test)
    kept = _capped(stores[0].labels, cfg.n_train)
    if len(kept) < 2:
        raise UserError(f"{train}: holds a single image; training and validation need one each at least")
    return _encoded_dataset(cfg, seed, classes, stores, kept, np.arange(len(stores[1].labels)), root)


def _open_folders(cfg: Data, train: Path, test: Path) -> tuple:
    files = {split: class_folders(split) for split in (train, test)}
    for here, there in ((train, test), (test, train)):
        for name in files[here]:
            if name not in files[there]:
                raise UserError(
                    f"{there / name}: no such class folder, but {here / name} is there; both need the same classes"
                )
    stores = [
        _Store(Pictures(Files(split, sum(found.values(), [])), cfg.input, cfg.workers), _labels(found))
        for split, found in files.items()
    ]
    return tuple(files[train]), stores


def _labels(files: Dict[str, List[str]]) -> np.ndarray:
    return np.repeat(np.arange(len(files), dtype=np.int32), [len(names) for names in files.values()])


def _open_records(cfg: Data, train: Path, test: Path) -> tuple:
    sources = [Records(path) for path in (train, test)]
    named = train.with_name("classes.txt")
    n_classes = max(int(source.labels.max()) for source in sources) + 1
    classes = read_classes(named) if named.exists() else tuple(map(str, range(n_classes)))
    if n_classes > len(classes):
        raise UserError(
            f"{named}: names {len(classes)} classes, but there are images of class {n_classes - 1} "
            "(counted from 0); they should come from the same preparation"
        )
    for source in sources:
        n_images = np.bincount(source.labels, minlength=len(classes))
        if not n_images.all():
            label = int(n_images.argmin())
            raise UserError(
                f"{source.path}: holds no image of class {label} ({classes[label]}); training and test "
                "images need the same classes"
            )
    return classes, [_Store(Pictures(source, cfg.input, cfg.workers), source.labels) for source in sources]


def _encoded_dataset(
    cfg: Data,
    seed: int,
    classes: Sequence[str],
    stores: Sequence[_Store],
    kept: np.ndarray,
    tested: np.ndarray,
    beside: Path,
) -> Dataset:
    """From the rows `kept` of the first store and `tested` of the last; `beside`: the folder to note checks in.

    What fits into memory is decoded now, which also finds a broken test image before the training, not hours later;
    but augment: imagenet wants all of a training image, so these stay encoded, and are only checked.
    """
    train, test = stores
    fits = (len(kept) + len(tested)) * train.pictures.n_bytes < _MEMORY_LIMIT
    skip = cfg.on_bad_image == "skip"
    skipped: List[str] = []

    def split(store: _Store, rows: np.ndarray, in_memory: bool) -> Split:
        images, problems = store.pictures, {}
        if in_memory:
            images, problems = _in_memory(store.pictures, rows, skip)
        elif fits or skip:
            problems = _problems(store.pictures, rows, skip, None if fits else beside)
        good = rows[~np.isin(rows, list(problems))]
        if not len(good):
            raise UserError(f"{problems[rows[0]]} (nor can any other of {len(rows)} images be used)")
        skipped.extend(problems.values())
        return Split(images, store.labels, good, _IMAGENET_MEAN, _IMAGENET_STD)

    held_in, held_out = _held_out(train.labels, kept, cfg.validation, seed)
    splits = (
        split(train, held_in, fits and cfg.augment != "imagenet"),
        split(train, held_out, fits),
        split(test, tested, fits),
    )
    return Dataset(cfg.name, cfg.input, tuple(classes), *splits, skipped=tuple(skipped))


def _in_memory(pictures: Pictures, rows: np.ndarray, skip: bool) -> Tuple[np.ndarray, Dict[int, str]]:
    """All rows decoded, and what is wrong with those that cannot be. BadImage: one cannot, and `skip` is off."""

    def image(row: int) -> Union[np.ndarray, BadImage]:
        try:
            return pictures.image(row)
        except BadImage as error:
            if not skip:
                raise
            return error

    decoded = np.zeros((len(pictures.source), *pictures.shape), np.uint8)  # rows that are not in use take no memory
    problems = {}
    with closing(in_order(image, rows, pictures.workers, 4 * pictures.workers)) as found:
        for row, one in zip(rows, found):
            if isinstance(one, BadImage):
                problems[int(row)] = str(one)
            else:
                decoded[row] = one
    return decoded, problems


def _problems(pictures: Pictures, rows: np.ndarray, skip: bool, beside: Optional[Path]) -> Dict[int, str]:
    """What is wrong with the rows that cannot be decoded, after a look at all. BadImage: one, and `skip` is off.

    Noted in a hidden file in `beside`, by the images' names and sizes: the next run does not look again, and of several
    processes one does.
    """
    if beside is None:
        return _look(pictures, rows, skip)
    if not os.access(beside, os.W_OK):
        print(f"warning: {beside}: cannot be written to, so every run checks all images anew", file=sys.stderr)
        return _look(pictures, rows, skip)
    seen = hashlib.sha256()
    for row in rows:
        seen.update(f"{pictures.source.name(row)}\t{pictures.source.size(row)}\n".encode())
    noted = beside / f".checked-{seen.hexdigest()[:12]}.json"
    with turn(beside):
        if not noted.exists():
            write_json(noted, _look(pictures, rows, skip))
    return {int(row): why for row, why in json.loads(noted.read_text(encoding="utf-8")).items()}


def _look(pictures: Pictures, rows: np.ndarray, skip: bool) -> Dict[int, str]:
    problems = {}
    with closing(in_order(pictures.problem, rows, pictures.workers, 64 * pictures.workers)) as found:
        for row, why in zip(
            rows,
            tqdm(
                found,
                desc="check",
                total=len(rows),
                unit="img",
                file=sys.stderr,
                leave=False,
                mininterval=0.5 if sys.stderr.isatty() else 20,
            ),
        ):
            if why is not None:
                if not skip:
                    raise BadImage(why)
                problems[int(row)] = why
    return problems


_CALTECH_FOLDER = "256_ObjectCategories"
_CLUTTER = re.compile(r"\d+\.clutter")  # images of nothing: no class


def _caltech256(cfg: Data, seed: int) -> Dataset:
    root = Path(cfg.root).expanduser()
    if root.is_dir():
        folder = root / _CALTECH_FOLDER if (root / _CALTECH_FOLDER).is_dir() else root
        files = class_folders(folder)
    elif root.exists():
        folder, files, places = root.parent, *_caltech_tar(root)
    else:
        raise UserError(
            f"{root}: not there; data.root should be {_CALTECH_FOLDER}.tar (1.2 GB, from "
            "data.caltech.edu/records/nyy15-4j048), or the folder that it unpacks to"
        )
    files = {name: found for name, found in files.items() if not _CLUTTER.fullmatch(name)}
    for name, found in files.items():
        if len(found) <= cfg.per_class:
            raise UserError(
                f"{root}: class {name} has {len(found)} images, too few for {cfg.per_class} to train on "
                "and one to test; set data.per_class lower"
            )
    names = sum(files.values(), [])
    source = Files(folder, names) if root.is_dir() else Members(root, [places[name] for name in names])
    store = _Store(Pictures(source, cfg.input, cfg.workers), _labels(files))
    trained = _caltech_split(cfg, files, seed)
    kept, tested = np.flatnonzero(trained), np.flatnonzero(~trained)
    kept = kept[_capped(store.labels[kept], cfg.n_train)]
    return _encoded_dataset(cfg, seed, tuple(files), (store, store), kept, tested, folder)


def _caltech_tar(path: Path) -> Tuple[Dict[str, List[str]], Dict[str, Tuple[str, int, int]]]:
    """Class -> `class/file` of its images, and where each lies, of a tar with or without the outermost folder."""
    found: Dict[str, List[str]] = {}
    places: Dict[str, Tuple[str, int, int]] = {}
    for member in safe_members(path):
        parts = [part for part in member.name.split("/") if part not in (".", _CALTECH_FOLDER)]
        if member.isdir() and len(parts) == 1:
            found.setdefault(parts[0], [])
        elif member.isfile() and len(parts) == 2:  # deeper ones are somebody's notes
            found.setdefault(parts[0], []).append(parts[1])
            places["/".join(parts)] = place_of(member)
    return classes_of({name: names for name, names in found.items() if not name.startswith(".")}, str(path)), places


def _caltech_split(cfg: Data, files: Dict[str, List[str]], seed: int) -> np.ndarray:
    """Which of all images (in order) are to train on: `per_class` of every class, by `split_file` or the seed."""
    if cfg.split_file is not None:
        path = Path(cfg.split_file.replace("{seed}", str(seed))).expanduser()
        with turn(path.parent):  # of several processes one writes it
            if not path.exists():
                names, trained = np.array(sum(files.values(), [])), _drawn(files, cfg.per_class, seed)
                _write_split(path, names[trained].tolist(), names[~trained].tolist(), cfg.per_class, seed)
        return _read_split(path, files, cfg.per_class)
    return _drawn(files, cfg.per_class, seed)


def _drawn(files: Dict[str, List[str]], per_class: int, seed: int) -> np.ndarray:
    trained = []
    for label, names in enumerate(files.values()):
        chosen = np.zeros(len(names), bool)
        chosen[np.random.default_rng((2, seed, label)).permutation(len(names))[:per_class]] = True
        trained.append(chosen)
    return np.concatenate(trained)


def _write_split(path: Path, train: List[str], test: List[str], per_class: int, seed: int) -> None:
    if path.suffix.lower() == ".json":
        write_json(path, {"data": "caltech256", "per_class": per_class, "seed": seed, "train": train, "test": test})
        return
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("split", "name"), *(("train", name) for name in train), *(("test", name) for name in test)]
        )


def _read_split(path: Path, files: Dict[str, List[str]], per_class: int) -> np.ndarray:
    """UserError: not such a file, or not a division of just these images, `per_class` of a class to train on."""

    def wrong(why: str) -> UserError:
        return UserError(f"{path}: {why}; give the data that it was made for, or remove it to have a new one written")

    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            content = json.loads(text)
            sides = {name: side for side in ("train", "test") for name in content[side]}
            n_named = len(content["train"]) + len(content["test"])
        else:
            rows = [(row["name"], row["split"]) for row in csv.DictReader(text.splitlines())]
            sides, n_named = dict(rows), len(rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise wrong(f"not a split file ({type(error).__name__}: {error})") from error
    if n_named > len(sides):
        raise wrong(f"names {n_named - len(sides)} of {n_named} images twice: its two sides overlap")
    if not set(sides.values()) <= {"train", "test"}:
        raise wrong("has a split that is neither train nor test")
    names = sum(files.values(), [])
    for name in sides.keys() - set(names):
        raise wrong(f"names {name}, which is not there")
    for name in set(names) - sides.keys():
        raise wrong(f"does not name {name}, which is there")
    for label, found in files.items():
        n_train = sum(sides[name] == "train" for name in found)
        if n_train != per_class:
            raise wrong(f"has {n_train} training images of class {label}, but data.per_class is {per_class}")
    return np.array([sides[name] == "train" for name in names])
