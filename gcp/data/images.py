"""Encoded images: where they lie (class folders, tar, RecordIO), decoding, checking, augmenting, all in threads.

A source (`Files`, `Members`, `Records`) gives an image's bytes by row; `Pictures` makes of one what looks like a uint8
array. Not MXNet's `ImageRecordIter`: its augmentation depends on the number of threads, it cannot start in the middle
of a pass, and a broken image ends it without a name. Grey, CMYK and 16-bit images become 8-bit RGB; alpha is dropped.
"""

from __future__ import annotations

import os
import re
import struct
import tarfile
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Callable, Deque, Dict, Iterable, Iterator, List, Optional, Protocol, Sequence, Tuple, TypeVar

import cv2
import numpy as np

from gcp.errors import UserError
from gcp.runtime import physical_cores

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}

# Images are decoded side by side: threads that OpenCV starts within one of them would only get in the way.
cv2.setNumThreads(1)


class BadImage(UserError):
    """An image that cannot be read or decoded; the message starts with its name."""


Item, Result = TypeVar("Item"), TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """`function` of every item, in order, from `workers` threads that are at most `ahead` items before the consumer.

    An error comes when its item's turn does. Closing the generator leaves no thread behind.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="images")
    waiting: Deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown()


# Where images lie


class Source(Protocol):
    """Encoded images by row."""

    def __len__(self) -> int:
        """Number of images."""

    def name(self, row: int) -> str:
        """What a message calls the image: its path, or the file that holds it and its place there."""

    def read(self, row: int) -> bytes:
        """The encoded image. BadImage: it is not there, or not whole."""

    def size(self, row: int) -> int:
        """Its number of bytes, more or less: tells whether it was replaced. -1 where there is none."""


class Files:
    """Image files below `root`."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        """Its path."""
        return str(self.root / self.names[row])

    def read(self, row: int) -> bytes:
        """The file's content."""
        try:
            return (self.root / self.names[row]).read_bytes()
        except OSError as error:
            raise BadImage(f"{self.name(row)}: image cannot be read: {error.strerror}; replace or remove it") from error

    def size(self, row: int) -> int:
        """The file's size."""
        try:
            return (self.root / self.names[row]).stat().st_size
        except OSError:
            return -1


class _Pieces:
    """One open file, read at any place by any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        weakref.finalize(self, os.close, self._file)
        self.n_bytes = os.fstat(self._file).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Fewer bytes than `length` only at the end of the file."""
        found = os.pread(self._file, length, offset)
        while 0 < len(found) < length:  # a network file system may give less at a time
            more = os.pread(self._file, length - len(found), offset + len(found))
            if not more:
                break
            found += more
        return found


class Members(_Pieces):
    """Members of an uncompressed tar (or of tars in it), read where they lie: each its name, offset and length."""

    def __init__(self, path: Path, places: Sequence[Tuple[str, int, int]]) -> None:
        super().__init__(path)
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def name(self, row: int) -> str:
        """The tar and the member."""
        return f"{self.path}, member {self._places[row][0]}"

    def read(self, row: int) -> bytes:
        """The member's content."""
        _, offset, length = self._places[row]
        content = self.read_at(offset, length)
        if len(content) < length:
            raise BadImage(f"{self.name(row)}: the tar ends within it; replace the tar with a whole copy")
        return content

    def size(self, row: int) -> int:
        """The member's size."""
        return self._places[row][2]


def place_of(member: tarfile.TarInfo, start: int = 0) -> Tuple[str, int, int]:
    """What `Members` needs of a member of a tar that begins at byte `start` of the file."""
    return member.name, start + member.offset_data, member.size


def safe_members(path: Path) -> List[tarfile.TarInfo]:
    """The files and folders of an uncompressed tar, in its order.

    UserError: not a whole one, or a member that leads out of the folder or is neither file nor folder.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            return harmless(tar, str(path))
    except tarfile.TarError as error:
        raise UserError(
            f"{path}: not an uncompressed tar file, or not all of it ({error}); replace it with a whole copy"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def harmless(tar: tarfile.TarFile, where: str) -> List[tarfile.TarInfo]:
    """The members of an open tar called `where`; UserError as `safe_members`."""
    members = tar.getmembers()
    tar.fileobj.seek(max(0, tar.fileobj.seek(0, os.SEEK_END) - tarfile.BLOCKSIZE))
    if any(tar.fileobj.read()):  # every tar ends in zeros; Python's reader does not mind when they are missing
        raise tarfile.ReadError("it ends early")
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or "\\" in member.name:
            raise UserError(
                f"{where}: member {member.name!r} leads out of its folder; no archive of this data set "
                "holds such a name, get another copy"
            )
        if not member.isfile() and not member.isdir():
            raise UserError(
                f"{where}: member {member.name!r} is a link or a device; no archive of this data set holds "
                "one, get another copy"
            )
    return members


def class_folders(split: Path) -> Dict[str, List[str]]:
    """Class name -> paths of its images from the folder `split` (`class/file`), both sorted.

    UserError: what `classes_of` refuses, or a folder that cannot be read.
    """
    found: Dict[str, List[str]] = {}
    for folder in _entries(split):
        if folder.is_dir() and not folder.name.startswith("."):
            found[folder.name] = [entry.name for entry in _entries(Path(folder.path)) if not entry.is_dir()]
    return classes_of(found, str(split))


def _entries(folder: Path) -> List[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{folder}: folder cannot be read: {error.strerror}; give yourself the right to, or remove it"
        ) from error


def classes_of(found: Dict[str, List[str]], where: str) -> Dict[str, List[str]]:
    """Class name -> `class/file` of its images, both sorted, from class name -> all its files' names.

    UserError: no class, one without images, two that differ in case only, two images that differ in suffix only.
    """
    if not found:
        raise UserError(f"{where}: holds no class folders")
    folded: Dict[str, str] = {}
    classes = {}
    for name in sorted(found):
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"{where}/{name}: the same class as {other}, but for the case; make them one")
        files = sorted(
            file for file in found[name] if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".")
        )
        if not files:
            raise UserError(f"{where}/{name}: class folder without images ({', '.join(sorted(SUFFIXES))})")
        stems: Dict[str, str] = {}
        for file in files:
            other = stems.setdefault(os.path.splitext(file)[0], file)
            if other != file:
                raise UserError(
                    f"{where}/{name}/{file}: the same name as {other}; remove one, or rename it if they are two images"
                )
        classes[name] = [f"{name}/{file}" for file in files]
    return classes


# RecordIO: MXNet's format. A record is magic, kind and length, the bytes, zeros up to a multiple of four; where its
# bytes hold the magic at such a place it is split there: whole, or first, middle, last.

MAGIC = struct.pack("<I", 0xCED7230A)
WHOLE, FIRST, MIDDLE, LAST = range(4)
LABEL = struct.Struct("<IfQQ")  # number of further labels, label, id, the id's high bits
MAX_PIECE = 2**29 - 1


class Records(_Pieces):
    """Images in `path` (.rec) with its .idx beside it, and im2rec's .lst if that is there, which names them.

    UserError: no index, or one of another file; a file that ends early; a label that is no class number.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        index = path.with_suffix(".idx")
        self.keys, self._offsets = self._read_index(index)
        self._check_ends(index)
        listed = path.with_suffix(".lst")
        self.names: Optional[List[str]] = None
        if listed.exists():
            labels, self.names = self._read_list(listed)
        else:
            labels = [self._label(row) for row in range(len(self.keys))]
        numbers = np.array(labels, np.float64)
        odd = np.flatnonzero(~((numbers >= 0) & (numbers < 2**24) & (numbers == np.floor(numbers))))  # NaN is odd
        if len(odd):
            raise UserError(
                f"{self.name(odd[0])}: the label {labels[odd[0]]:g} is no class number (0, 1, ...); make the file anew"
            )
        self.labels = numbers.astype(np.int32)

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, row: int) -> str:
        """The file, the record's number, and what it was made from."""
        return f"{self.path}, record {self.keys[row]}" + (f" ({self.names[row]})" if self.names else "")

    def size(self, row: int) -> int:
        """The record's size."""
        return int(self._ends[row] - self._offsets[row])

    def read(self, row: int) -> bytes:
        """The encoded image. UserError: its label is not the list's."""
        content = self._record(row)
        if len(content) < LABEL.size:
            raise BadImage(f"{self.name(row)}: holds no image; make the file anew")
        n_more, label, _, _ = LABEL.unpack_from(content)
        if n_more > 1 or (label if n_more == 0 else _first_label(content)) != self.labels[row]:
            raise UserError(
                f"{self.name(row)}: its label is not the {self.labels[row]} of "
                f"{self.path.with_suffix('.lst').name}; the list is of another file"
            )
        return content[LABEL.size + 4 * n_more :]

    def _read_index(self, path: Path) -> Tuple[List[int], np.ndarray]:
        try:
            numbers = np.array(path.read_bytes().split(), np.int64)
        except FileNotFoundError:
            raise UserError(
                f"{path}: not there, but {self.path.name} is; make it with MXNet's tools/rec2idx.py, or "
                "both with scripts/prepare.py"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, OverflowError) as error:
            raise UserError(f"{path}: not an index ({error}); it should hold a number and an offset a line") from error
        if len(numbers) == 0 or len(numbers) % 2:
            raise UserError(f"{path}: empty or truncated; make it anew with MXNet's tools/rec2idx.py")
        keys, offsets = numbers.reshape(-1, 2).T
        if len(np.unique(keys)) < len(keys):
            raise UserError(f"{path}: holds a record's number twice; make it anew with MXNet's tools/rec2idx.py")
        return keys.tolist(), offsets

    def _check_ends(self, index: Path) -> None:
        """Find where every record ends, and that the last one ends with the file."""
        order = np.argsort(self._offsets)
        ends = np.append(self._offsets[order][1:], self.n_bytes)
        self._ends = np.empty_like(ends)
        self._ends[order] = ends
        if self._offsets.min() != 0 or self._offsets.max() >= self.n_bytes:
            raise UserError(
                f"{index}: not the index of {self.path.name}, or that is truncated: the last record should "
                f"begin at byte {self._offsets.max()} of {self.n_bytes}"
            )
        self.names = None
        last = int(order[-1])
        span = record_span(self.read_at(int(self._offsets[last]), int(self._ends[last] - self._offsets[last])))
        if span is None:
            raise UserError(f"{self.name(last)}: truncated record, or {index.name} is of another file; make both anew")
        if self._offsets[last] + span < self.n_bytes:
            raise UserError(
                f"{index}: truncated: {self.path.name} goes on after its last record; make it anew with "
                "MXNet's tools/rec2idx.py"
            )

    def _read_list(self, path: Path) -> Tuple[List[float], List[str]]:
        found: Dict[int, Tuple[float, str]] = {}
        for number, line in enumerate(read_text(path).splitlines(), 1):
            fields = line.split("\t")
            try:
                found[int(fields[0])] = float(fields[1]), fields[2]
            except (ValueError, IndexError):
                raise UserError(f"{path}, line {number}: should be number, label, name with tabs between") from None
        if len(found) != len(self.keys) or any(key not in found for key in self.keys):
            raise UserError(
                f"{path}: lists {len(found)} images, {self.path.name} holds {len(self.keys)}, or others; "
                "remove the list, or make both anew"
            )
        return [found[key][0] for key in self.keys], [found[key][1] for key in self.keys]

    def _label(self, row: int) -> float:
        content = self.read_at(int(self._offsets[row]), 8 + LABEL.size + 4)
        if len(content) < 8 + LABEL.size or content[:4] != MAGIC:
            raise BadImage(self._no_record(row))
        n_more, label, _, _ = LABEL.unpack_from(content, 8)
        return label if n_more == 0 else _first_label(content[8:])

    def _record(self, row: int) -> bytes:
        start, end = int(self._offsets[row]), int(self._ends[row])
        content = self.read_at(start, end - start)
        pieces, place = [], 0
        while True:
            if content[place : place + 4] != MAGIC or len(content) < place + 8:
                raise BadImage(self._no_record(row))
            kind, length = divmod(struct.unpack_from("<I", content, place + 4)[0], MAX_PIECE + 1)
            if kind not in ((WHOLE, FIRST) if not pieces else (MIDDLE, LAST)) or len(content) < place + 8 + length:
                raise BadImage(self._no_record(row))
            pieces.append(content[place + 8 : place + 8 + length])
            if kind in (WHOLE, LAST):
                return MAGIC.join(pieces)
            place += 8 + -(-length // 4) * 4

    def _no_record(self, row: int) -> str:
        return (
            f"{self.name(row)}: no whole record at byte {self._offsets[row]}; the index is of another file, or the "
            "file was damaged: make both anew"
        )


def _first_label(content: bytes) -> float:
    return struct.unpack_from("<f", content, LABEL.size)[0]


def record_span(content: bytes) -> Optional[int]:
    """The bytes that the record at the start of `content` takes up; None where it is not whole or none."""
    place, expected = 0, (WHOLE, FIRST)
    while True:
        if content[place : place + 4] != MAGIC or len(content) < place + 8:
            return None
        kind, length = divmod(struct.unpack_from("<I", content, place + 4)[0], MAX_PIECE + 1)
        place += 8 + -(-length // 4) * 4
        if kind not in expected or len(content) < place:
            return None
        if kind in (WHOLE, LAST):
            return place
        expected = (MIDDLE, LAST)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def read_classes(path: Path) -> Tuple[str, ...]:
    """The class names in a file, one a line. UserError: one is empty or there twice."""
    names = read_text(path).splitlines()
    for number, name in enumerate(names, 1):
        if not name.strip() or name in names[: number - 1]:
            raise UserError(f"{path}, line {number}: {'a class twice: ' + name if name.strip() else 'no class name'}")
    if not names:
        raise UserError(f"{path}: empty; it should hold a class name a line")
    return tuple(names)


# Decoding


class Pictures:
    """A source's images as a uint8 array (n, 3, H, W) would be: indexing with rows decodes them, in `workers` threads.

    Resized until the short side is 8/7 of the input (256 for 224), the middle cut out. 0 workers: one per core.
    """

    def __init__(self, source: Source, shape: Tuple[int, int, int], workers: int = 0) -> None:
        self.source = source
        self.shape = shape
        self.workers = workers or physical_cores()
        self.n_bytes = shape[0] * shape[1] * shape[2]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self.shape), np.uint8)
        for place, image in enumerate(in_order(self.image, rows, self.workers, 4 * self.workers)):
            images[place] = image
        return images

    def image(self, row: int) -> np.ndarray:
        """One image, uint8 (3, H, W)."""
        image = decoded(self.source.read(row), self.source.name(row))
        height, width = self.shape[1:]
        scale = 8 / 7 * max(height / image.shape[0], width / image.shape[1])
        size = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return image[top : top + height, left : left + width, ::-1].transpose(2, 0, 1)

    def varied(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """One image with the ImageNet recipe's changes, made from all of it: uint8 (3, H, W)."""
        content = self.source.read(row)
        found = jpeg_shape(content)
        if found is None:
            image = decoded(content, self.source.name(row))
            return varied(image, crop_box(*image.shape[:2], rng), self.shape[1:], rng)
        top, left, height, width = crop_box(*found[:2], rng)
        # libjpeg can halve while it decodes: less work, and averages where picking pixels would alias.
        by = next((by for by in (8, 4, 2) if height >= by * self.shape[1] and width >= by * self.shape[2]), 1)
        image = decoded(content, self.source.name(row), REDUCED[by])
        return varied(image, (top // by, left // by, height // by, width // by), self.shape[1:], rng)

    def problem(self, row: int) -> Optional[str]:
        """What is wrong with an image, by its name; None if it can be decoded."""
        try:
            decoded(self.source.read(row), self.source.name(row), REDUCED[8])
        except BadImage as error:
            return str(error)
        return None


REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decoded(content: bytes, name: str, how: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """An encoded image as uint8 (height, width, 3), blue, green, red. BadImage: it is not one, or not whole."""
    if is_truncated(content):  # OpenCV would fill the missing part with grey and say nothing
        raise BadImage(f"{name}: truncated image; replace or remove it")
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), how) if content else None
    except cv2.error:  # more pixels than OpenCV agrees to
        image = None
    if image is None:
        raise BadImage(f"{name}: not an image that OpenCV can decode; replace or remove it")
    return image


# Neither an escaped 0xff nor a restart marker nor filling.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def is_truncated(content: bytes) -> bool:
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


def jpeg_shape(content: bytes) -> Optional[Tuple[int, int, int]]:
    """A JPEG's height, width and channels from its header; None for others, and where Exif may turn the image."""
    position = 2
    while content.startswith(b"\xff\xd8"):
        marker = _JPEG_MARKER.search(content, position)
        if marker is None or len(content) < marker.end() + 8:
            return None
        kind, place = marker.group()[1], marker.end()
        if kind == 0xE1 and content[place + 2 : place + 6] == b"Exif":
            return None
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame, not tables
            height, width, channels = struct.unpack_from(">HHB", content, place + 3)
            return (height, width, channels) if height and width else None
        position = place + struct.unpack_from(">H", content, place)[0]
    return None


# Augmenting


def shifts(n: int, size: Tuple[int, int], mirror: bool, rng: np.random.Generator) -> np.ndarray:
    """What `shifted` does to each of `n` images: int (n, 3) of down, right and whether it is mirrored."""
    down, right = _reach(size)
    y, x = rng.integers(0, 2 * down + 1, n), rng.integers(0, 2 * right + 1, n)
    flipped = rng.random(n) < 0.5 if mirror else np.zeros(n, bool)
    return np.stack((y, x, flipped), axis=1)


def shifted(images: np.ndarray, how: np.ndarray) -> np.ndarray:
    """uint8 (n, c, H, W) shifted by up to a 16th of each side, black moving in, and mirrored, as `shifts` says."""
    n, _, height, width = images.shape
    down, right = _reach((height, width))
    padded = np.pad(images, ((0, 0), (0, 0), (down, down), (right, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    moved = windows[np.arange(n), :, how[:, 0], how[:, 1]]
    flipped = how[:, 2].astype(bool)
    if flipped.any():
        moved[flipped] = moved[flipped, :, :, ::-1]
    return moved


def _reach(size: Tuple[int, int]) -> Tuple[int, int]:
    return max(1, size[0] // 16), max(1, size[1] // 16)


# GluonCV's ImageNet recipe: see `get_data_loader` in its auto/estimators/image_classification/utils.py.
_AREA, _RATIO, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
_JITTER, _LIGHTING = 0.4, 0.1
_GREY = np.array([0.299, 0.587, 0.114])
_EIGENVALUES = np.array([55.46, 4.794, 1.148])
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def crop_box(height: int, width: int, rng: np.random.Generator) -> Tuple[int, int, int, int]:
    """A random part of an image as (top, left, height, width): 8 to 100 % of its area, sides 3:4 to 4:3.

    Uniform in the area and in the logarithm of the ratio. The largest allowed part in the middle, after ten that do not
    fit.
    """
    draws = rng.random((_TRIES, 4))
    for area, ratio, down, right in draws:
        area = (_AREA[0] + area * (_AREA[1] - _AREA[0])) * height * width
        ratio = np.exp(np.log(_RATIO[0]) + ratio * np.log(_RATIO[1] / _RATIO[0]))
        w, h = max(1, round(np.sqrt(area * ratio))), max(1, round(np.sqrt(area / ratio)))
        if w <= width and h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h, w = min(height, round(width / _RATIO[0])), min(width, round(height * _RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def varied(
    image: np.ndarray, box: Tuple[int, int, int, int], size: Tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """The box of an image (h, w, 3; blue, green, red) resized, half mirrored, colours changed: uint8 RGB (3, H, W)."""
    top, left, height, width = box
    image = cv2.resize(image[top : top + height, left : left + width], size[::-1], interpolation=cv2.INTER_LINEAR)
    mirrored = rng.random() < 0.5
    image = cv2.transform(image, _colours(np.array(cv2.mean(image)[2::-1]), rng))
    return (image[:, ::-1] if mirrored else image).transpose(2, 0, 1)


def _colours(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation in random order, then lighting, as one map (3, 4) from BGR to RGB.

    All four are affine in a pixel's colours, and contrast needs only the image's `mean` (RGB), so they are done at
    once: rounded and cut off at 0 and 255 in the end, not in between as well.
    """
    factors = rng.uniform(1 - _JITTER, 1 + _JITTER, 3)
    matrix, offset = np.eye(3), np.zeros(3)
    for kind in rng.permutation(3):
        factor = factors[kind]
        if kind == 0:  # brightness
            matrix, offset = factor * matrix, factor * offset
        elif kind == 1:  # contrast: away from the mean grey
            grey = _GREY @ (matrix @ mean + offset)
            matrix, offset = factor * matrix, factor * offset + (1 - factor) * grey
        else:  # saturation: away from each pixel's grey
            mix = factor * np.eye(3) + (1 - factor) * _GREY
            matrix, offset = mix @ matrix, mix @ offset
    offset = offset + _EIGENVECTORS @ (rng.normal(0, _LIGHTING, 3) * _EIGENVALUES)
    return np.column_stack((matrix[:, ::-1], offset))
