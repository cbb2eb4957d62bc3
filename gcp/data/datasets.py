"""The data sets: for each, its options and the function that opens it, registered by name in `DATASETS`."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import os
import re
import struct
import sys
import zlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import Any, ClassVar, Dict, Iterator, List, Literal, Optional, Sequence, Set, Tuple

import numpy as np
from pydantic import BaseModel, Field

from gcp.data import sources
from gcp.data.base import DATASETS, Data, Dataset, Split, capped, from_arrays, held_out, spread
from gcp.data.decode import Decoded, Pictures, in_order, progress
from gcp.data.sources import BadImage
from gcp.errors import UserError
from gcp.options import section
from gcp.seeds import caltech_generator, fixed_generator
from gcp.storage import expanded, locked, read_json, read_text, readable, replacing, write_json

_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
_IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32) * 255
_MOST_DEFLATED = 1032  # the most bytes that one byte of a gzip file can expand to
_MEMORY_LIMIT = 2 * 10**9  # bytes of decoded images; a larger data set is decoded anew in every pass


def options(**values: Any) -> Data:
    """A data set's options from command-line values, where None means not given. Raises UserError if one is invalid."""
    name = values.get("name")
    if name in DATASETS and not DATASETS.options[name].LABELLED and values.get("n_classes") is None:
        fix = "give one with labels, such as --data folder --root ROOT"
        raise UserError(f"--data {name}: has no labels to compare with; {fix}", key="option.value")
    try:
        return section(Data, values)
    except UserError as error:  # its wording is that for a configuration
        raise UserError(str(error).replace("data.", "--").replace("name: ", "--data "), key=error.key) from None


def load(data: Data, seed: int = 0) -> Dataset:
    """The data set that `data` names. `seed` only determines which training images are held out for validation.

    In Caltech-256, which comes without a split, it also determines which images are for training. Raises UserError,
    with the path, for files that are missing, unreadable or truncated, or that contradict each other.
    """
    return DATASETS[data.name](data, seed)


# Grey images that fit into memory: digits and Fashion-MNIST


class Digits(Data):
    """scikit-learn's handwritten digits, which are installed with it: 8 px, a fifth of the images for testing."""

    def known_size(self) -> Tuple[int, int]:
        """Of 1797 images, a fifth are for testing."""
        return 10, 1438


@DATASETS.register("digits", Digits)
def digits(data: Digits, seed: int) -> Dataset:
    """scikit-learn's digits."""
    from sklearn.datasets import load_digits  # takes a second to import; only this data set needs it

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    tested = np.zeros(len(images), bool)
    tested[spread(bunch.target, len(images) // 5, fixed_generator())] = True
    train, test = ((images[part], bunch.target[part]) for part in (~tested, tested))
    return from_arrays(data, seed, [str(name) for name in bunch.target_names], train, test)


_FASHION_CLASSES = "T-shirt/top|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|Ankle boot".split("|")
# The names of the files, and the SHA-256 of those that come with this package.
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "ce5e57baa8eaeb5f7fbd59348134bc511326106243bd0f544109fa0e86df6198",
    "train-labels-idx1-ubyte.gz": "df4b63bba0211923d06c4632fa890b85d498757c347ee710627e9503eca9aa29",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
_FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist", "~/.mxnet/datasets/fashion-mnist")
FASHION_PART = Path(__file__).with_name("fashion_mnist")
N_FASHION_PART, N_FASHION = 10_000, 60_000


class FashionMnist(Data):
    """Fashion-MNIST. Up to 10,000 training images come from the part in this package, more from the whole set.

    Which images `n_train` selects does not depend on where the files are.
    """

    UNCOUNTED: ClassVar[Set[str]] = {"root"}

    root: Optional[str] = Field(None, min_length=1, description="the folder with the four .gz files of the whole set")
    n_train: int = Field(
        N_FASHION_PART,
        ge=2,
        le=N_FASHION,
        description="training images, including those held out for validation; more than 10,000 need the whole set",
    )

    def known_size(self) -> Tuple[int, int]:
        """The size of the whole set."""
        return len(_FASHION_CLASSES), N_FASHION


@DATASETS.register("fashion_mnist", FashionMnist)
def fashion_mnist(data: FashionMnist, seed: int) -> Dataset:
    """Fashion-MNIST from its four files."""
    root, names = _fashion_root(data), list(_FASHION_FILES)
    (images, labels), test = (_read_pair(root / names[k], root / names[k + 1]) for k in (0, 2))
    if data.n_train <= N_FASHION_PART:
        part = capped(labels, N_FASHION_PART)
        images, labels = images[part], labels[part]
    return from_arrays(data, seed, _FASHION_CLASSES, (images, labels), test)


def _fashion_root(data: FashionMnist) -> Path:
    """The folder with the four files: the given one, the package's own part if enough, or Debian's or MXNet's."""

    def lacking(folder: Path) -> List[str]:
        return [name for name in _FASHION_FILES if not (folder / name).is_file()]

    if data.root is not None:
        root = expanded(data.root)
        for name in lacking(root):
            should = f"data.root must hold {', '.join(_FASHION_FILES)}"
            raise UserError(f"{root}: Fashion-MNIST file {name} does not exist; {should}")
        return root
    if data.n_train <= N_FASHION_PART:
        for name, digest in _FASHION_FILES.items():
            path = FASHION_PART / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise UserError(f"{path}: not the file that comes with this package; reinstall the package")
        return FASHION_PART
    for folder in map(Path, map(os.path.expanduser, _FASHION_FOLDERS)):
        if not lacking(folder):
            return folder
    raise UserError(
        f"data.n_train: {data.n_train} training images of Fashion-MNIST need the whole set, which is not in "
        f"{' or '.join(_FASHION_FOLDERS)}; install Debian's package dataset-fashion-mnist, set data.root to a folder "
        f"with the four files of github.com/zalandoresearch/fashion-mnist, or data.n_train to at most {N_FASHION_PART}"
    )


def _read_pair(image_path: Path, label_path: Path) -> Tuple[np.ndarray, np.ndarray]:
    images, labels = _read_idx(image_path, 3), _read_idx(label_path, 1)
    if len(images) != len(labels):
        found = f"holds {len(labels)} labels for the {len(images)} images of {image_path.name}"
        raise UserError(f"{label_path}: {found}; take both files from the same copy of the data set")
    if labels.max() >= len(_FASHION_CLASSES):
        raise UserError(f"{label_path}: holds the label {labels.max()}; Fashion-MNIST has labels 0 to 9")
    return images, labels


def _read_idx(path: Path, n_dims: int) -> np.ndarray:
    """The uint8 array in a gzipped IDX file: a magic number, the big-endian sizes, the bytes.

    Raises UserError if the file cannot be read, is truncated, or is not such a file.
    """
    try:
        with gzip.open(path, "rb") as file:
            header = file.read(4 + 4 * n_dims)
            if header[:4] != bytes((0, 0, 8, n_dims)):  # 8: unsigned bytes
                start = header[:4].hex() or "nothing"
                raise ValueError(f"not an IDX file of {n_dims}-dimensional byte data (it starts with {start})")
            if len(header) < 4 + 4 * n_dims:
                raise ValueError("truncated within its header")
            sizes = struct.unpack_from(f">{n_dims}I", header, 4)
            n_bytes, said = math.prod(sizes), f"claims to hold {'x'.join(map(str, sizes))} bytes"
            if n_bytes > _MOST_DEFLATED * path.stat().st_size:
                raise ValueError(f"{said}, more than a file of its size can")
            content = file.read(min(n_bytes, _MEMORY_LIMIT) + 1)
            if not 0 < n_bytes == len(content):
                raise ValueError(f"{said} but holds {len(content) if len(content) <= n_bytes else 'more'}")
        return np.frombuffer(content, np.uint8).reshape(sizes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        why = f"truncated or not a gzip file ({error})"
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    except ValueError as error:
        why = str(error)
    raise UserError(f"{path}: {why}; replace it with a complete copy")


# Image files in classes: folders, RecordIO, Caltech-256


class Encoded(Data):
    """The keys that data sets of image files share."""

    ROOT: ClassVar[str]  # what `root` should be
    # Where the files of a well-known data set are does not affect results.
    UNCOUNTED: ClassVar[Set[str]] = {"workers", "root"}

    root: Optional[str] = Field(
        None, min_length=1, description="the folder that holds the data set's files; caltech256: or its tar"
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error", description="for images that cannot be decoded: raise an error, or leave them out and count them"
    )
    workers: int = Field(0, ge=0, le=1024, description="number of threads that decode images; 0: one per physical core")

    def mistakes(self) -> Iterator[str]:
        """See `Options.mistakes`."""
        if self.root is None:
            yield f"name: {self.name} needs a root; set data.root to {self.ROOT}"


class Folder(Encoded):
    """Images in class folders or RecordIO files; of undivided class folders, a fifth of the images are for testing."""

    ROOT: ClassVar[str] = "a folder with train/ and test/, train.rec and test.rec, or one folder of images per class"
    UNCOUNTED: ClassVar[Set[str]] = {"workers"}  # only `root` says which images these are
    GET: ClassVar[str] = ""  # how to get the data
    SIZE: ClassVar[Optional[Tuple[int, int]]] = None  # for when there are no files to count

    def known_size(self) -> Tuple[int, int]:
        """Counted in the files, if they are there."""
        root, n_tested = expanded(self.root), 0
        if (root / "train").is_dir():
            labels = sources.labels_of(sources.class_folders(root / "train"))
        elif _is_undivided(root):
            labels = sources.labels_of(sources.class_folders(root))
            n_tested = _n_tested(len(labels))
        elif (root / "train.idx").is_file() and (root / "classes.txt").is_file():
            return len(sources.read_classes(root / "classes.txt")), len(sources.lines_of(root / "train.idx"))
        elif (root / "train.rec").is_file():
            labels = sources.Records(root / "train.rec").labels  # of every class, or `folder` refuses the file
        elif self.SIZE is None:
            raise self.not_so(root)
        else:
            return self.SIZE
        return int(labels.max()) + 1, len(labels) - n_tested

    def not_so(self, root: Path) -> UserError:
        """The error that says what the folder should hold, or that it is not there."""
        if not root.exists():
            return UserError(f"{root}: does not exist; set data.root to {self.ROOT}{self.GET}")
        return UserError(
            f"{root}: must hold the folders train and test (or val), each with one per class, or train.rec and "
            "test.rec (or val.rec) with their .idx, or folders of images, one per class (for images without labels, "
            f"use the data set `images`, or --unlabelled){self.GET}"
        )


class ImageNet(Folder):
    """ILSVRC2012, in the same forms as `folder`."""

    ROOT: ClassVar[str] = "a folder with train.rec and val.rec, as scripts/prepare.py writes them, or train/ and val/"
    UNCOUNTED: ClassVar[Set[str]] = Encoded.UNCOUNTED
    GET: ClassVar[str] = "; get the ILSVRC2012 archives from image-net.org and run scripts/prepare.py imagenet"
    SIZE: ClassVar[Optional[Tuple[int, int]]] = (1000, 1_281_167)


@DATASETS.register("imagenet", ImageNet)
@DATASETS.register("folder", Folder)
def folder(data: Folder, seed: int) -> Dataset:
    """Class folders `root/train/<class>`, `root/test|val/<class>`, or RecordIO `root/train.rec`, `test.rec|val.rec`."""
    root = expanded(data.root)
    if _is_undivided(root):
        found = sources.class_folders(root)
        store = sources.Files(root, sum(found.values(), [])), sources.labels_of(found)
        return _divided_by_us(data, seed, tuple(found), store, root)
    kinds = [suffix for suffix in ("", ".rec") if (root / f"train{suffix}").exists()]
    if len(kinds) == 2:
        raise UserError(f"{root}: holds both train/ and train.rec; move the unwanted one away")
    tests = [root / (name + suffix) for suffix in kinds for name in ("test", "val")]
    paths = [root / f"train{kind}" for kind in kinds] + [path for path in tests if path.exists()][:1]
    if len(paths) < 2:
        raise data.not_so(root)
    classes, stores = (_open_records if kinds == [".rec"] else _open_folders)(*paths)
    kept = capped(stores[0][1], data.n_train)
    return _divided(data, seed, classes, stores, kept, np.arange(len(stores[1][1])), root)


class Images(Encoded):
    """Images without labels, in a folder and its subfolders; a network's predictions serve as their labels.

    A fifth of them are for testing.
    """

    LABELLED: ClassVar[bool] = False
    ROOT: ClassVar[str] = "a folder of images"
    UNCOUNTED: ClassVar[Set[str]] = {"workers"}

    n_classes: int = Field(ge=2, le=10**6, description="images: length of the network's output vector")

    def known_size(self) -> Tuple[int, int]:
        """Counted in the files."""
        n = len(sources.images_below(expanded(self.root)))
        return self.n_classes, n - _n_tested(n)


@DATASETS.register("images", Images)
def images(data: Images, seed: int) -> Dataset:
    """Images below a folder, all with label 0 until the task `agreement` replaces it with a network's predictions."""
    root = expanded(data.root)
    names = sources.images_below(root)
    store = sources.Files(root, names), np.zeros(len(names), np.int32)
    classes = tuple(map(str, range(data.n_classes)))
    return replace(_divided_by_us(data, seed, classes, store, root), task="agreement")


def _is_undivided(root: Path) -> bool:
    """Whether the folder itself holds class folders."""
    if not root.is_dir() or any((root / name).exists() for name in ("train", "test", "val", "train.rec")):
        return False
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in root.iterdir())


def _n_tested(n: int) -> int:
    """How many of a data set's images are for testing if it comes without a split."""
    return n // 5


_Store = Tuple[sources.Source, np.ndarray]  # encoded images on disk, and their labels (int32)


def _open_folders(train: Path, test: Path) -> Tuple[Tuple[str, ...], List[_Store]]:
    files = {split: sources.class_folders(split) for split in (train, test)}
    sources.same_classes(files)
    stores = [
        (sources.Files(split, sum(found.values(), [])), sources.labels_of(found)) for split, found in files.items()
    ]
    return tuple(files[train]), stores


def _open_records(train: Path, test: Path) -> Tuple[Tuple[str, ...], List[_Store]]:
    opened = [sources.Records(path) for path in (train, test)]
    named = train.with_name("classes.txt")
    n_classes = max(int(source.labels.max()) for source in opened) + 1
    classes = sources.read_classes(named) if named.exists() else tuple(map(str, range(n_classes)))
    if n_classes > len(classes):
        found = f"names {len(classes)} classes, but there are images of class {n_classes - 1} (counted from 0)"
        raise UserError(f"{named}: {found}; take both from the same preparation")
    for source in opened:
        sources.every_class(str(source.path), source.labels, classes)
    return classes, [(source, source.labels) for source in opened]


def _divided_by_us(data: Encoded, seed: int, classes: Sequence[str], store: _Store, root: Path) -> Dataset:
    """A data set that comes without a split: a fifth of every class for testing, the same images for every seed."""
    labels = store[1]
    if len(labels) < 5:
        raise UserError(f"{root}: holds {len(labels)} images; training, validation and testing need at least 5")
    tested = spread(labels, _n_tested(len(labels)), fixed_generator())
    kept = np.setdiff1d(np.arange(len(labels)), tested)
    kept = kept[capped(labels[kept], data.n_train)]
    return _divided(data, seed, classes, [store] * 2, kept, tested, root)


def _divided(
    data: Encoded,
    seed: int,
    classes: Sequence[str],
    stores: Sequence[_Store],
    kept: np.ndarray,
    tested: np.ndarray,
    beside: Path,
) -> Dataset:
    """A data set of the rows `kept` of the first store and `tested` of the last; checks are noted in folder `beside`.

    Images that fit into memory are decoded now, which also finds a broken test image before the training, not hours
    later. But augment: imagenet needs whole training images, so these stay encoded, and are only checked.
    """
    if len(kept) < 2:
        raise UserError(f"{data.root}: holds a single training image; training and validation need at least one each")
    fits = (len(kept) + len(tested)) * math.prod(data.input) < _MEMORY_LIMIT
    skip = data.on_bad_image == "skip"
    skipped: List[str] = []

    def split(store: _Store, rows: np.ndarray, in_memory: bool) -> Split:
        source, labels = store
        images, problems = Pictures(source, data.input, data.workers), {}
        if in_memory:
            decoded = Decoded(len(source), rows, data.input)
            images, problems = decoded, _problems(images, rows, skip, decoded)
        elif fits or skip:
            problems = _problems(images, rows, skip) if fits else _noted_problems(images, rows, skip, beside)
        good = rows[~np.isin(rows, list(problems))]
        if not len(good):
            raise UserError(f"{problems[rows[0]]} (and none of the {len(rows)} images can be used)")
        skipped.extend(problems.values())
        return Split(images, labels, good, _IMAGENET_MEAN, _IMAGENET_STD)

    rows, validation = held_out(stores[0][1], kept, data.validation, seed)
    splits = (
        split(stores[0], rows, fits and data.augment != "imagenet"),
        split(stores[0], validation, fits),
        split(stores[1], tested, fits),
    )
    return Dataset(data.name, data.input, tuple(classes), *splits, skipped=tuple(skipped))


def _problems(pictures: Pictures, rows: np.ndarray, skip: bool, decoded: Optional[Decoded] = None) -> Dict[int, str]:
    """What is wrong with the rows that cannot be decoded, after checking all; the others go into `decoded`, if given.

    Raises BadImage if there is such a row and `skip` is off.
    """

    def look(row: int) -> Optional[str]:
        if decoded is None:
            return pictures.problem(row)
        try:
            decoded[row] = pictures.image(row)
        except BadImage as error:
            return str(error)

    problems = {}
    with closing(in_order(look, rows, pictures.workers, 64 * pictures.workers)) as found:
        for row, why in zip(rows, progress(found, "check", len(rows))):
            if why is not None and not skip:
                raise BadImage(why)
            if why is not None:
                problems[int(row)] = why
    return problems


def _noted_problems(pictures: Pictures, rows: np.ndarray, skip: bool, beside: Path) -> Dict[int, str]:
    """As `_problems`, but noted in a hidden file in `beside`, named after a hash of the images' names and sizes.

    So the next run does not check them again, and only one of several processes does.
    """
    if not os.access(beside, os.W_OK):
        print(f"warning: {beside}: cannot be written to, so every run checks all images again", file=sys.stderr)
        return _problems(pictures, rows, skip)
    seen = hashlib.sha256()
    for row in rows:
        seen.update(f"{pictures.source.name(row)}\t{pictures.source.size(row)}\n".encode(errors="surrogateescape"))
    noted = beside / f".checked-{seen.hexdigest()[:12]}.json"
    with locked(beside):
        if not noted.exists():
            found = _problems(pictures, rows, skip)
            write_json(noted, {row: readable(why) for row, why in found.items()})
    return read_json(noted, Dict[int, str], "remove it, and the images will be checked again")


_CALTECH_FOLDER = "256_ObjectCategories"
_CLUTTER = re.compile(r"\d+\.clutter")  # images of nothing in particular, so not a class


class Caltech256(Encoded):
    """Caltech-256, from its tar or the folder that it unpacks to."""

    ROOT: ClassVar[str] = "256_ObjectCategories.tar, or the folder that it unpacks to"

    per_class: int = Field(
        60, ge=2, le=10**6, description="caltech256: training images per class, including those held out for validation"
    )
    split_file: Optional[str] = Field(
        None,
        min_length=1,
        description="caltech256: .json or .csv file of the split, read if it exists, else written; {seed} in "
        "it stands for the seed",
    )

    def mistakes(self) -> Iterator[str]:
        """See `Options.mistakes`."""
        yield from super().mistakes()
        if self.split_file is not None and not self.split_file.lower().endswith((".json", ".csv")):
            yield f"split_file: {self.split_file!r} must end in .json or .csv"

    def known_size(self) -> Tuple[int, int]:
        """Of 30,607 images, 827 are clutter; those that are not for training are for testing."""
        return 256, min(30_607 - 827, 256 * self.per_class)


@DATASETS.register("caltech256", Caltech256)
def caltech256(data: Caltech256, seed: int) -> Dataset:
    """Caltech-256, with `per_class` images of every class for training, and all others for testing."""
    root = expanded(data.root)
    if not root.exists():
        wanted = f"{_CALTECH_FOLDER}.tar (1.2 GB, from data.caltech.edu/records/nyy15-4j048)"
        raise UserError(f"{root}: does not exist; data.root must be {wanted}, or the folder that it unpacks to")
    beside = caltech_folder(root) if root.is_dir() else root.parent
    found, places = (sources.class_folders(beside), {}) if root.is_dir() else caltech_tar(root)
    files = {name: names for name, names in found.items() if not _CLUTTER.fullmatch(name)}
    if not files:
        raise UserError(f"{root}: holds no class other than clutter; it must hold {_CALTECH_FOLDER}/001.ak47 and so on")
    for name, names in files.items():
        if len(names) <= data.per_class:
            few = f"{len(names)} images, too few for {data.per_class} to train on and one to test"
            raise UserError(f"{root}: class {name} has {few}; lower data.per_class")
    names, labels = sum(files.values(), []), sources.labels_of(files)
    source = sources.Members(root, [places[name] for name in names]) if places else sources.Files(beside, names)
    trained = _caltech_split(data, files, seed)
    kept = np.flatnonzero(trained)
    kept = kept[capped(labels[kept], data.n_train)]
    return _divided(data, seed, tuple(files), [(source, labels)] * 2, kept, np.flatnonzero(~trained), beside)


def caltech_folder(root: Path) -> Path:
    """The folder that holds the class folders."""
    return root / _CALTECH_FOLDER if (root / _CALTECH_FOLDER).is_dir() else root


def caltech_tar(path: Path) -> Tuple[Dict[str, List[str]], Dict[str, Tuple[str, int, int]]]:
    """Class -> `class/file` of its images, and the place of each, in a tar with or without the outermost folder."""
    found: Dict[str, List[str]] = {}
    places: Dict[str, Tuple[str, int, int]] = {}
    for member in sources.safe_members(path):
        parts = [part for part in member.name.split("/") if part not in (".", _CALTECH_FOLDER)]
        if member.isdir() and len(parts) == 1:
            found.setdefault(parts[0], [])
        elif member.isfile() and len(parts) == 2:  # deeper ones are somebody's notes
            found.setdefault(parts[0], []).append(parts[1])
            places["/".join(parts)] = sources.place_of(member)
    shown = {name: names for name, names in found.items() if not name.startswith(".")}
    return sources.classes_of(shown, str(path)), places


class _SplitFile(BaseModel):
    """The content of a split file in JSON: the names of the images on each side."""

    train: List[str]
    test: List[str]


def _caltech_split(data: Caltech256, files: Dict[str, List[str]], seed: int) -> np.ndarray:
    """For every image, in order, whether it is for training: `per_class` of each class, by `split_file` or the seed."""
    drawn = [caltech_generator(seed, label).permutation(len(names)) for label, names in enumerate(files.values())]
    trained = np.concatenate([np.argsort(order) < data.per_class for order in drawn])
    if data.split_file is None:
        return trained
    path = expanded(data.split_file.replace("{seed}", str(seed)))
    with locked(path.parent):  # only one of several processes writes it
        if not path.exists():
            names = np.array(sum(files.values(), []))
            split = {"train": names[trained].tolist(), "test": names[~trained].tolist()}
            if path.suffix.lower() == ".json":
                write_json(path, {"data": data.name, "per_class": data.per_class, "seed": seed, **split})
            else:
                with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
                    csv.writer(file).writerows(
                        [("split", "name"), *((side, name) for side, found in split.items() for name in found)]
                    )
    return _read_split(path, files, data.per_class)


def _read_split(path: Path, files: Dict[str, List[str]], per_class: int) -> np.ndarray:
    """For every image, whether the split file says that it is for training.

    Raises UserError if the file is not a split file, or does not divide exactly these images, with `per_class` of each
    class for training.
    """
    fix = "give the data that it was made for, or remove it to have a new one written"

    def wrong(why: str) -> UserError:
        return UserError(f"{path}: {why}; {fix}", key="data.split")

    if path.suffix.lower() == ".json":
        split = read_json(path, _SplitFile, fix)
        rows = [*((name, "train") for name in split.train), *((name, "test") for name in split.test)]
    else:
        try:
            found = csv.DictReader(io.StringIO(read_text(path, fix), newline=""), strict=True)
            rows = [(row["name"], row["split"]) for row in found]
        except (csv.Error, KeyError) as error:
            raise wrong(f"not a split file ({type(error).__name__}: {error})") from error
    sides = dict(rows)
    if len(rows) > len(sides):
        raise wrong(f"lists {len(rows) - len(sides)} of {len(rows)} images twice: its two sides overlap")
    if not set(sides.values()) <= {"train", "test"}:
        raise wrong("has a split that is neither train nor test")
    names = sum(files.values(), [])
    for name in sides.keys() - set(names):
        raise wrong(f"lists {name}, which does not exist")
    for name in set(names) - sides.keys():
        raise wrong(f"does not list {name}, which exists")
    trained = np.array([sides[name] == "train" for name in names])
    counts = np.bincount(sources.labels_of(files)[trained], minlength=len(files))
    for name, n_train in zip(files, counts):
        if n_train != per_class:
            raise wrong(f"has {n_train} training images of class {name}, but data.per_class is {per_class}")
    return trained
