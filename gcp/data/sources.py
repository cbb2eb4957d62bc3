"""Encoded images where they are stored: class folders, tar files, RecordIO. A source gives an image's bytes by its row.

MXNet's own reader is not used: it cannot start in the middle of a pass, and a broken record ends it without being
named.
"""

from __future__ import annotations

import itertools
import os
import stat
import struct
import tarfile
import weakref
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Protocol, Sequence, Tuple

import numpy as np

from gcp.errors import UserError
from gcp.storage import read_bytes, read_text

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}


class BadImage(UserError):
    """An image that cannot be read or decoded; the message starts with its name."""


class Source(Protocol):
    """Encoded images by row."""

    def __len__(self) -> int:
        """Number of images."""

    def name(self, row: int) -> str:
        """What messages call the image: its path, or the file that holds it and its place in that file."""

    def read(self, row: int) -> bytes:
        """The encoded image. Raises BadImage if it is missing or incomplete."""

    def size(self, row: int) -> int:
        """Its approximate number of bytes, which tells whether it was replaced; -1 if there is no image."""


class Files:
    """Image files below `root`."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        """The image's path."""
        return str(self.root / self.names[row])

    def read(self, row: int) -> bytes:
        """The file's content. Raises BadImage if it cannot be read."""
        path = self.root / self.names[row]
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe could keep us waiting for ever
                raise BadImage(f"{self.name(row)}: is not a regular file; replace or remove it")
            return path.read_bytes()
        except OSError as error:
            raise BadImage(f"{self.name(row)}: image cannot be read: {error.strerror}; replace or remove it") from error

    def size(self, row: int) -> int:
        """The file's size in bytes; -1 if it is missing."""
        try:
            return (self.root / self.names[row]).stat().st_size
        except OSError:
            return -1


class _Pieces:
    """One open file that any thread can read at any position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        weakref.finalize(self, os.close, self._file)
        self.n_bytes = os.fstat(self._file).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes at an offset; fewer than `length` only at the end of the file."""
        found = b""  # a network file system may give less at a time
        while len(found) < length and (more := os.pread(self._file, length - len(found), offset + len(found))):
            found += more
        return found


# Tar files


class Members(_Pieces):
    """Members of an uncompressed tar (or of tars in it), read in place; a place is a name, an offset and a length."""

    def __init__(self, path: Path, places: Sequence[Tuple[str, int, int]]) -> None:
        super().__init__(path)
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def name(self, row: int) -> str:
        """The tar and the member."""
        return f"{self.path}, member {self._places[row][0]}"

    def read(self, row: int) -> bytes:
        """The member's content. Raises BadImage if the tar ends within it."""
        _, offset, length = self._places[row]
        content = self.read_at(offset, length)
        if len(content) < length:
            raise BadImage(f"{self.name(row)}: the tar ends within it; replace the tar with a complete copy")
        return content

    def size(self, row: int) -> int:
        """The member's size in bytes."""
        return self._places[row][2]


def place_of(member: tarfile.TarInfo, start: int = 0) -> Tuple[str, int, int]:
    """What `Members` needs to know about a member of a tar that begins at byte `start` of the file."""
    return member.name, start + member.offset_data, member.size


def safe_members(path: Path) -> List[tarfile.TarInfo]:
    """The files and folders of an uncompressed tar, in its order.

    Raises UserError if the tar is incomplete, or if a member leads out of the folder or is neither an ordinary file nor
    a folder.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            return harmless(tar, str(path))
    except tarfile.TarError as error:
        why = f"not an uncompressed tar file, or not a complete one ({error})"
    except OSError as error:
        why = f"cannot be read ({error.strerror or error})"
    raise UserError(f"{path}: {why}; replace it with a complete copy")


def harmless(tar: tarfile.TarFile, where: str) -> List[tarfile.TarInfo]:
    """The members of an open tar called `where`. Raises UserError for unsafe ones, ReadError if the tar ends early."""
    members = tar.getmembers()
    tar.fileobj.seek(max(0, tar.fileobj.seek(0, os.SEEK_END) - tarfile.BLOCKSIZE))
    if any(tar.fileobj.read()):  # every tar ends in zeros; Python's reader accepts a tar without them
        raise tarfile.ReadError("it ends early")
    for member in members:
        name = PurePosixPath(member.name)
        leads_out = name.is_absolute() or ".." in name.parts or "\\" in member.name
        # A sparse file, of which the tar holds only parts, can have any size, and cannot be read in place.
        if leads_out or member.issparse() or not (member.isfile() or member.isdir()):
            wrong = "leads out of its folder" if leads_out else "is a link, a device or a sparse file"
            raise UserError(f"{where}: member {member.name!r} {wrong}; get another copy, without such members")
    return members


# Class folders


def class_folders(split: Path) -> Dict[str, List[str]]:
    """Class name -> paths of its images from the folder `split` (`class/file`), both sorted.

    Raises UserError for what `classes_of` refuses, or a folder that cannot be read.
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
        fix = "give yourself permission to read it, or remove it"
        raise UserError(f"{folder}: folder cannot be read: {error.strerror}; {fix}") from error


def images_below(root: Path) -> List[str]:
    """Paths of all images below `root`, relative to it and sorted.

    Raises UserError if there are none, or a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); give a folder of images") from error

    found = []
    for folder, below, names in os.walk(root, onerror=fail):
        below[:] = [name for name in below if not name.startswith(".")]
        images = [name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in images]
    if not found:
        raise UserError(f"{root}: holds no image ({', '.join(sorted(SUFFIXES))}) at any depth")
    return sorted(found)


def classes_of(found: Dict[str, List[str]], where: str) -> Dict[str, List[str]]:
    """Class name -> `class/file` of its images, both sorted, from class name -> names of all its files.

    Raises UserError for no class, a class without images, two classes that differ only in case, or two images of a
    class that differ only in suffix.
    """
    if not found:
        raise UserError(f"{where}: holds no class folders")
    for other, name in _alike(sorted(found), str.casefold):
        raise UserError(f"{where}/{name}: the same class as {other}, except for case; merge them")
    classes = {}
    for name in sorted(found):
        shown = [file for file in found[name] if not file.startswith(".")]
        files = sorted(file for file in shown if os.path.splitext(file)[1].lower() in SUFFIXES)
        if not files:
            raise UserError(f"{where}/{name}: class folder without images ({', '.join(sorted(SUFFIXES))})")
        for other, file in _alike(files, lambda file: os.path.splitext(file)[0]):
            fix = "remove one, or rename it if they are different images"
            raise UserError(f"{where}/{name}/{file}: the same name as {other}; {fix}")
        classes[name] = [f"{name}/{file}" for file in files]
    return classes


def _alike(names: Sequence[str], key: Callable[[str], str]) -> Iterator[Tuple[str, str]]:
    """Pairs of names for which `key` gives the same value, the earlier name first."""
    seen: Dict[str, str] = {}
    for name in names:
        other = seen.setdefault(key(name), name)
        if other != name:
            yield other, name


def same_classes(splits: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise UserError unless both folders have the same classes."""
    for here, there in itertools.permutations(splits):
        for name in splits[here]:
            if name not in splits[there]:
                found = f"no such class folder, but {here / name} exists"
                raise UserError(f"{there / name}: {found}; both need the same classes")


def every_class(where: str, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Raise UserError unless there are images of every class."""
    n_images = np.bincount(labels, minlength=len(classes))
    if not n_images.all():
        label = int(n_images.argmin())
        lacking = f"holds no image of class {label} ({classes[label]})"
        raise UserError(f"{where}: {lacking}; training and test images need the same classes")


def labels_of(classes: Dict[str, List[str]]) -> np.ndarray:
    """The label of every image, int32, where images are ordered by class."""
    return np.repeat(np.arange(len(classes), dtype=np.int32), [len(names) for names in classes.values()])


# RecordIO, MXNet's format: a record is the magic number, kind and length, the bytes, and zeros up to a multiple of
# four. Where the bytes contain the magic number at a multiple of four, the record is split there; the kind of a piece
# is whole, or first, middle or last.

MAGIC = struct.pack("<I", 0xCED7230A)
WHOLE, FIRST, MIDDLE, LAST = range(4)
LABEL = struct.Struct("<IfQQ")  # number of further labels, label, id, the id's high bits
MAX_PIECE = 2**29 - 1
MAX_RECORD = 2**28  # bytes; no image is larger, and a damaged file may claim anything
ANEW = "recreate the index with MXNet's tools/rec2idx.py, or both with scripts/prepare.py"


def packed(content: bytes) -> bytes:
    """Bytes as one record of MXNet's RecordIO."""
    pieces, start, place = [], 0, content.find(MAGIC)
    while place >= 0:
        if place % 4 == 0:
            pieces.append(content[start:place])
            start = place + 4
        place = content.find(MAGIC, place + (4 if place % 4 == 0 else 1))
    pieces.append(content[start:])
    kinds = [WHOLE] if len(pieces) == 1 else [FIRST] + [MIDDLE] * (len(pieces) - 2) + [LAST]
    return b"".join(
        MAGIC + struct.pack("<I", kind << 29 | len(piece)) + piece + bytes(-len(piece) % 4)
        for kind, piece in zip(kinds, pieces)
    )


def unpacked(content: bytes) -> Optional[Tuple[bytes, int]]:
    """The bytes of the record at the start of `content`, and its whole length; None if there is no complete record."""
    pieces: List[bytes] = []
    place, kind = 0, WHOLE
    while not pieces or kind not in (WHOLE, LAST):
        if content[place : place + 4] != MAGIC or len(content) < place + 8:
            return None
        kind, length = divmod(struct.unpack_from("<I", content, place + 4)[0], MAX_PIECE + 1)
        pieces.append(content[place + 8 : place + 8 + length])
        place += 8 + -(-length // 4) * 4
        if kind not in ((WHOLE, FIRST) if len(pieces) == 1 else (MIDDLE, LAST)) or len(content) < place:
            return None
    return MAGIC.join(pieces), place


class Records(_Pieces):
    """Images in `path` (.rec) with its .idx beside it and, if it exists, im2rec's .lst, which names them.

    Raises UserError if the index is missing or belongs to another file, the file ends early, or a label is not a class
    number.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names: Optional[List[str]] = None
        index = path.with_suffix(".idx")
        self.keys, self._offsets = self._read_index(index)
        self._ends = self._find_ends(index)
        listed = path.with_suffix(".lst")
        if listed.exists():
            labels, self.names = self._read_list(listed)
        else:
            labels = [self._label(row) for row in range(len(self.keys))]
        numbers = np.array(labels, np.float64)
        odd = np.flatnonzero(~((numbers >= 0) & (numbers < 2**24) & (numbers == np.floor(numbers))))  # also finds NaN
        for row in odd:
            label = f"the label {labels[row]:g} is not a class number (0, 1, ...)"
            raise UserError(f"{self.name(row)}: {label}; recreate the file")
        self.labels = numbers.astype(np.int32)

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, row: int) -> str:
        """The file, the record's number, and what it was made from."""
        return f"{self.path}, record {self.keys[row]}" + (f" ({self.names[row]})" if self.names else "")

    def size(self, row: int) -> int:
        """The record's size in bytes."""
        return int(self._ends[row] - self._offsets[row])

    def read(self, row: int) -> bytes:
        """The encoded image. Raises UserError if its label is not the list's, BadImage if the record is damaged."""
        found = unpacked(self.read_at(int(self._offsets[row]), min(self.size(row), MAX_RECORD)))
        if found is None:
            raise self._no_record(row)
        content, _ = found
        if len(content) < LABEL.size:
            raise BadImage(f"{self.name(row)}: holds no image; recreate the file")
        if _label_of(content) != self.labels[row]:
            listed = f"the {self.labels[row]} in {self.path.stem}.lst"
            raise UserError(f"{self.name(row)}: its label is not {listed}; the list belongs to another file")
        return content[LABEL.size + 4 * LABEL.unpack_from(content)[0] :]

    def _read_index(self, path: Path) -> Tuple[List[int], np.ndarray]:
        if not os.path.lexists(path):
            raise UserError(f"{path}: does not exist, but {self.path.name} does; {ANEW}")
        try:
            numbers = np.array(read_bytes(path, ANEW).split(), np.int64)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{path}: not an index ({error}); {ANEW}") from error
        if len(numbers) == 0 or len(numbers) % 2:
            raise UserError(f"{path}: empty or truncated; {ANEW}")
        keys, offsets = numbers.reshape(-1, 2).T
        if len(np.unique(keys)) < len(keys):
            raise UserError(f"{path}: holds a record number twice; {ANEW}")
        return keys.tolist(), offsets

    def _find_ends(self, index: Path) -> np.ndarray:
        """Where every record ends. Raises UserError if the last one does not end with the file."""
        order = np.argsort(self._offsets)
        ends = np.empty_like(self._offsets)
        ends[order] = np.append(self._offsets[order][1:], self.n_bytes)
        last, start = int(order[-1]), int(self._offsets.max())
        if self._offsets.min() != 0 or start >= self.n_bytes:
            found = f"the last record would begin at byte {start} of {self.n_bytes}"
            raise UserError(f"{index}: not the index of {self.path.name}, or that file is truncated: {found}; {ANEW}")
        found = unpacked(self.read_at(start, min(self.n_bytes - start, MAX_RECORD)))
        if found is None:
            raise UserError(
                f"{self.name(last)}: truncated record, or {index.name} belongs to another file; recreate both"
            )
        if start + found[1] < self.n_bytes:
            raise UserError(f"{index}: truncated: {self.path.name} continues after its last record; {ANEW}")
        return ends

    def _read_list(self, path: Path) -> Tuple[List[float], List[str]]:
        found: Dict[int, Tuple[float, str]] = {}
        for number, line in enumerate(lines_of(path), 1):
            fields = line.split("\t")
            try:
                found[int(fields[0])] = float(fields[1]), fields[2]
            except (ValueError, IndexError):
                raise UserError(f"{path}, line {number}: must be number, label, name separated by tabs") from None
        if len(found) != len(self.keys) or any(key not in found for key in self.keys):
            held = f"but {self.path.name} holds {len(self.keys)}, or different ones"
            raise UserError(f"{path}: lists {len(found)} images, {held}; remove the list, or recreate both")
        return [found[key][0] for key in self.keys], [found[key][1] for key in self.keys]

    def _label(self, row: int) -> float:
        content = self.read_at(int(self._offsets[row]), 8 + LABEL.size + 4)
        if len(content) < 8 + LABEL.size or content[:4] != MAGIC:
            raise self._no_record(row)
        return _label_of(content[8:])

    def _no_record(self, row: int) -> BadImage:
        wrong = f"no complete record at byte {self._offsets[row]}"
        return BadImage(f"{self.name(row)}: {wrong}; index and file do not match, or one is damaged: {ANEW}")


def _label_of(content: bytes) -> float:
    """The label of a record; NaN if it has several."""
    n_more, label, _, _ = LABEL.unpack_from(content)
    if n_more == 0:
        return label
    return struct.unpack_from("<f", content, LABEL.size)[0] if n_more == 1 else float("nan")


def lines_of(path: Path) -> List[str]:
    """The lines of a text file. Raises UserError if it is not in UTF-8 or cannot be read."""
    # Not str.splitlines, which would split at characters that names may hold.
    return read_text(path).replace("\r\n", "\n").rstrip("\n").split("\n")


def read_classes(path: Path) -> Tuple[str, ...]:
    """The class names in a file, one per line. Raises UserError if one is empty or occurs twice."""
    names = lines_of(path)
    if names == [""]:
        raise UserError(f"{path}: empty; it must hold one class name per line")
    seen = set()
    for number, name in enumerate(names, 1):
        if not name.strip() or name in seen:
            raise UserError(f"{path}, line {number}: {'a class twice: ' + name if name.strip() else 'no class name'}")
        seen.add(name)
    return tuple(names)
