"""Data sets: a name in, training, validation and test batches `(x, y, n_valid)` out, as numpy arrays.

Images are kept as uint8 and become normalised float32, channels first, batch by batch. The validation images
are held out of the training images; the test images are nobody's to choose by.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence, Tuple, Union

import cv2
import numpy as np

from gcp.config import Data, UserError, physical_cores

Seed = Union[int, Tuple[int, ...]]

_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
_IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32) * 255


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Some rows of a store of images, served in batches.

    `images[rows]` gives uint8 (n, 3, H, W), or (n, 1, H, W) where the three channels are equal; `labels` (of
    all rows) are int32; `mean` and `std` are per channel, in units of the uint8 values.
    """

    images: np.ndarray | _Files
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

    def batches(self, size: int, *, seed: Seed | None = None, augment: str = "none", part: tuple[int, int] = (0, 1),
                first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """One pass as (x float32 (size, 3, H, W) normalised, y int32 (size,), n_valid).

        With a seed, for training: order and augmentation (none, crop, crop_flip) come from one generator,
        and the last batch is filled up from the start of the order; every image counts. Without, for
        evaluation: in order, the last batch filled up by repeating the last image; the first n_valid count.
        `part=(rank, n)` gives rows [rank * size / n, (rank + 1) * size / n) of every batch, with their own n_valid;
        `first` is the number of the first batch that is given.
        UserError: an image that cannot be read.
        """
        n, n_padded = len(self), self.n_batches(size) * size
        if seed is None:
            if augment != "none":
                raise ValueError("augmentation needs a seed")
            rng = None
            order = np.minimum(np.arange(n_padded), n - 1)
        else:
            rng = np.random.default_rng(seed)
            order = np.resize(rng.permutation(n), n_padded)  # np.resize repeats from the start
        low, high = (r * size // part[1] for r in (part[0], part[0] + 1))
        for start in range(0, n_padded, size):
            rows = self.rows[order[start:start + size]]
            images = self.images[rows]
            if rng is not None and augment != "none":
                images = _augmented(images, rng, mirror=augment == "crop_flip")
            n_valid = size if rng is not None else min(size, n - start)
            if start >= first * size:
                n_valid = min(max(n_valid - low, 0), high - low)
                yield self._normalised(images[low:high]), self.labels[rows[low:high]], n_valid

    def _normalised(self, images: np.ndarray) -> np.ndarray:
        n, _, height, width = images.shape
        x = np.empty((n, 3, height, width), np.float32)
        x[:] = images  # copies a single channel to all three
        x -= self.mean[:, None, None]
        x *= (1 / self.std)[:, None, None]
        return x


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set at one input size: name, input shape (3, H, W), class names by label, and three splits."""

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split


def load(cfg: Data, seed: int = 0) -> Dataset:
    """The data set that `cfg` names. `seed` only decides which training images are held out to validate.

    UserError: files that are missing, unreadable, truncated or contradict each other, with the path.
    """
    return {"digits": _digits, "fashion_mnist": _fashion_mnist, "folder": _folder}[cfg.name](cfg, seed)


# Dividing and augmenting

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


def _held_out(labels: np.ndarray, rows: np.ndarray, fraction: float,
              seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`rows` divided into those to train on and those to validate on."""
    n_held = max(1, round(len(rows) * fraction))
    held = np.zeros(len(rows), bool)
    held[_spread(labels[rows], n_held, np.random.default_rng((0, seed)))] = True
    return rows[~held], rows[held]


def _augmented(images: np.ndarray, rng: np.random.Generator, mirror: bool) -> np.ndarray:
    """uint8 (n, c, H, W) shifted at random by up to a 16th of each side, black moving in; half mirrored."""
    n, _, height, width = images.shape
    down, right = max(1, height // 16), max(1, width // 16)
    padded = np.pad(images, ((0, 0), (0, 0), (down, down), (right, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    y, x = rng.integers(0, 2 * down + 1, n), rng.integers(0, 2 * right + 1, n)
    shifted = windows[np.arange(n), :, y, x]
    if mirror:
        flipped = rng.random(n) < 0.5
        shifted[flipped] = shifted[flipped, :, :, ::-1]
    return shifted


# Grey images that fit into memory: digits and Fashion-MNIST

def _grey_dataset(cfg: Data, seed: int, classes: Sequence[str], train: tuple[np.ndarray, np.ndarray],
                  test: tuple[np.ndarray, np.ndarray]) -> Dataset:
    """From (images uint8 (n, h, w), labels (n,)) pairs."""
    # Over all training images as they are stored, so that input size, n_train and seed change nothing.
    moments = cv2.meanStdDev(train[0].reshape(len(train[0]), -1))
    mean, std = (np.full(3, value.item(), np.float32) for value in moments)
    kept = _capped(train[1], cfg.n_train)
    images, labels = _sized(train[0][kept], cfg.input), train[1][kept].astype(np.int32)
    held_in, held_out = _held_out(labels, np.arange(len(kept)), cfg.validation, seed)
    test_images, test_labels = _sized(test[0], cfg.input), test[1].astype(np.int32)
    return Dataset(cfg.name, cfg.input, tuple(classes),
                   Split(images, labels, held_in, mean, std), Split(images, labels, held_out, mean, std),
                   Split(test_images, test_labels, np.arange(len(test_labels)), mean, std))


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
    return _grey_dataset(cfg, seed, [str(name) for name in bunch.target_names],
                         (images[~tested], bunch.target[~tested]), (images[tested], bunch.target[tested]))


_FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_FASHION_FILES = {"train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
                  "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")}
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
            raise UserError(f"{root}: Fashion-MNIST file {lacking(root)[0]} is not there; "
                            f"data.root should hold {', '.join(sum(_FASHION_FILES.values(), ()))}")
        return root
    folders = [Path(folder).expanduser() for folder in _FASHION_FOLDERS]
    for folder in folders:
        if not lacking(folder):
            return folder
    try:
        from mxnet.gluon.data.vision import FashionMNIST
        FashionMNIST(str(folders[-1]), train=True)
        FashionMNIST(str(folders[-1]), train=False)
    except (ImportError, OSError, RuntimeError) as error:  # requests' errors are OSErrors
        raise UserError(f"Fashion-MNIST is not in {' or '.join(map(str, folders))} and cannot be downloaded "
                        f"({type(error).__name__}); install Debian's package dataset-fashion-mnist, or put "
                        "its four .gz files into a folder and set data.root to it") from error
    return folders[-1]


def _read_idx_pair(image_path: Path, label_path: Path) -> tuple[np.ndarray, np.ndarray]:
    images, labels = _read_idx(image_path, 3), _read_idx(label_path, 1)
    if len(images) != len(labels):
        raise UserError(f"{label_path}: holds {len(labels)} labels for the {len(images)} images of "
                        f"{image_path.name}; the two files should come from the same copy of the data set")
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


# Folders of class folders

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}
_MEMORY_LIMIT = 2 * 10 ** 9  # bytes of decoded images; a larger data set is decoded anew in every pass


def _folder(cfg: Data, seed: int) -> Dataset:
    root = Path(cfg.root).expanduser()
    train = root / "train"
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise UserError(f"{root}: should hold the folders train and test (or val), each with one per class")
    files = {split: _class_files(split) for split in (train, test)}
    classes = tuple(files[train])
    for here, there in ((train, test), (test, train)):
        for name in files[here]:
            if name not in files[there]:
                raise UserError(f"{there / name}: no such class folder, but {here / name} is there; "
                                "both need the same classes")
    paths, labels = [], []
    for split in (train, test):
        for label, name in enumerate(classes):
            paths += files[split][name]
            labels += [label] * len(files[split][name])
    n_train = sum(map(len, files[train].values()))
    labels = np.array(labels, np.int32)
    kept = _capped(labels[:n_train], cfg.n_train)
    if len(kept) < 2:
        raise UserError(f"{train}: holds a single image; training and validation need one each at least")
    held_in, held_out = _held_out(labels, kept, cfg.validation, seed)
    tested = np.arange(n_train, len(paths))
    images = _Files(paths, cfg.input)
    if (len(kept) + len(tested)) * images.n_bytes < _MEMORY_LIMIT:
        # Decoding everything now also finds a broken test image before the training, not hours later.
        kept = np.concatenate((kept, tested))
        decoded = np.zeros((len(paths), *cfg.input), np.uint8)  # rows that are not in use take no memory
        for start in range(0, len(kept), 256):
            decoded[kept[start:start + 256]] = images[kept[start:start + 256]]
        images = decoded
    splits = (Split(images, labels, rows, _IMAGENET_MEAN, _IMAGENET_STD)
              for rows in (held_in, held_out, tested))
    return Dataset(cfg.name, cfg.input, classes, *splits)


def _class_files(split: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted."""
    files = {}
    for folder in sorted(split.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            files[folder.name] = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES
                                        and not path.name.startswith("."))
            if not files[folder.name]:
                raise UserError(f"{folder}: class folder without images ({', '.join(sorted(_SUFFIXES))})")
    if not files:
        raise UserError(f"{split}: holds no class folders")
    return files


class _Files:
    """Image files that look like a uint8 array (n, 3, H, W): indexing it with rows decodes them."""

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int, int]):
        self.paths = paths
        self.shape = shape
        self.n_bytes = shape[0] * shape[1] * shape[2]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(physical_cores()) as pool:  # OpenCV lets other threads run while it decodes
            return np.stack(list(pool.map(lambda row: _read_image(self.paths[row], self.shape), rows)))


def _read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """An image file as uint8 RGB `shape`: resized to 8/7 of the input (256 for 224), the middle cut out."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: image cannot be read: {error.strerror}") from error
    if _is_truncated(content):  # OpenCV would fill the missing part with grey and say nothing
        raise UserError(f"{path}: truncated image; replace or remove it")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise UserError(f"{path}: not an image that OpenCV can decode; replace or remove it")
    height, width = shape[1:]
    scale = 8 / 7 * max(height / image.shape[0], width / image.shape[1])
    size = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top:top + height, left:left + width, ::-1].transpose(2, 0, 1)


# Neither an escaped 0xff nor a restart marker nor filling.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _is_truncated(content: bytes) -> bool:
    """Whether a JPEG, PNG or BMP file ends before its own structure does."""
    if content.startswith(b"\xff\xd8"):
        position = 2
        while True:  # from segment to segment: the end of an embedded thumbnail is not that of the image
            marker = _JPEG_MARKER.search(content, position)
            if marker is None:
                return True
            if marker.group() == b"\xff\xd9":
                return False
            if len(content) < marker.end() + 2:
                return True
            position = marker.end() + struct.unpack_from(">H", content, marker.end())[0]
    if content.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" not in content[-1024:]  # the last chunk with its checksum
    if content.startswith(b"BM") and len(content) >= 6:
        return len(content) < struct.unpack_from("<I", content, 2)[0]
    return False
