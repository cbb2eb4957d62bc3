"""Preparing data sets: the ILSVRC2012 archives checked and read in place, tars unpacked safely, RecordIO files written.

In: archives or class folders. Out: `train.rec`, `val.rec` with .idx and .lst beside them and `classes.txt`, as MXNet's
im2rec makes them. Everything goes on where a killed run stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import struct
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from tqdm import tqdm

from gcp.data.images import (
    FIRST,
    LABEL,
    LAST,
    MAGIC,
    MIDDLE,
    REDUCED,
    WHOLE,
    BadImage,
    Files,
    Members,
    Source,
    class_folders,
    classes_of,
    decoded,
    harmless,
    in_order,
    jpeg_shape,
    place_of,
    read_text,
    record_span,
    safe_members,
)
from gcp.errors import UserError
from gcp.runtime import physical_cores
from gcp.storage import replacing, turn, write_json

TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
# As published; sizes in bytes.
MD5 = {
    TRAIN_TAR: "1d675b47d978889d74fa0da5fadfb00e",
    VAL_TAR: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
SIZE = {TRAIN_TAR: 147897477120, VAL_TAR: 6744924160}
PREPARED = "prepared.json"
_FLUSH = 256  # records between two places to go on from


@dataclass(frozen=True)
class Expected:
    """How much should be there."""

    classes: int = 1000
    train: int = 1281167
    val: int = 50000


@dataclass(frozen=True)
class Encoding:
    """How an image is stored: as it is (`resize` None), or as a JPEG of this quality, short side at most `resize`."""

    resize: Optional[int] = 480
    quality: int = 95


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with names (`class/file`) and labels, in order."""

    source: Source
    names: Sequence[str]
    labels: Sequence[int]


# ILSVRC2012


def prepare_imagenet(
    tars: Path,
    out: Path,
    how: Encoding,
    expected: Optional[Expected] = None,
    ground_truth: Optional[Path] = None,
    skip: bool = False,
    workers: int = 0,
) -> dict:
    """ImageNet from its archives as train.rec and val.rec in `out`; returns what was done.

    `expected`: for a subset, the numbers that it has; then sizes and checksums, which are the whole set's, are not
    compared. `ground_truth`: in place of the devkit, a text file with the class (n01440764) of validation image 1, 2...
    UserError: an archive is missing, or is not what it should be.
    """
    archives = [TRAIN_TAR, VAL_TAR] + ([DEVKIT] if ground_truth is None else [])
    for name in archives:
        if not (tars / name).is_file():
            instead = " (or give --ground-truth)" if name == DEVKIT else ""
            raise UserError(f"{tars / name}: not there{instead}; download it from image-net.org (an account is needed)")
    sizes = {name: (tars / name).stat().st_size for name in archives}
    job = {"data": "imagenet", "sources": sizes, **_options(how, skip)}
    with _begun(out, job) as found:
        if found is not None:
            return found
        if expected is None:
            for name in archives:
                _check_archive(tars / name, out)
        wanted = expected or Expected()
        classes, train = _ilsvrc_train(tars / TRAIN_TAR, wanted)
        truth = _devkit_truth(tars / DEVKIT) if ground_truth is None else _text_truth(ground_truth)
        val = _ilsvrc_val(tars / VAL_TAR, classes, truth, wanted)
        return _written(out, job, classes, {"train": train, "val": val}, how, skip, workers)


def _check_archive(path: Path, out: Path) -> None:
    """UserError unless size and MD5 are the published ones. Noted in `out`: it takes minutes."""
    fix = (
        "; download it again, or say with --expect-classes, --expect-train and --expect-val what a subset of your "
        "own holds"
    )
    size = path.stat().st_size
    if size != SIZE.get(path.name, size):
        raise UserError(f"{path}: {size} bytes, but the published archive has {SIZE[path.name]}{fix}")
    noted = out / f".checked-{path.name}-{size}-{path.stat().st_mtime_ns}"
    if noted.exists():
        return
    digest = hashlib.md5()
    with _progress(f"md5 of {path.name}", size, "B") as bar, open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 24), b""):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != MD5[path.name]:
        raise UserError(f"{path}: MD5 {digest.hexdigest()}, but the published archive's is {MD5[path.name]}{fix}")
    noted.touch()


def _ilsvrc_train(path: Path, expected: Expected) -> Tuple[List[str], Labelled]:
    """Class names and images of a tar of tars, one a class, read where they lie."""
    inner: Dict[str, tarfile.TarInfo] = {}
    for member in safe_members(path):
        match = re.fullmatch(r"(?:.*/)?(n\d{8})\.tar", member.name)
        if member.isdir():
            continue
        if match is None or match[1] in inner:
            raise UserError(
                f"{path}: member {member.name!r} is {'there twice' if match else 'no tar of a class'}; it "
                "should hold n01440764.tar and so on; get the whole archive"
            )
        inner[match[1]] = member
    _check_count(path, "classes", len(inner), expected.classes, "--expect-classes")
    classes, names, labels, places = sorted(inner), [], [], []
    with tarfile.open(path, "r:") as outer, _progress(f"reading {path.name}", len(classes), "class") as bar:
        for label, name in enumerate(classes):
            where = f"{path}, {inner[name].name}"
            try:
                with tarfile.open(fileobj=outer.extractfile(inner[name]), mode="r:") as tar:
                    members = [m for m in harmless(tar, where) if m.isfile()]
            except tarfile.TarError as error:
                raise UserError(f"{where}: not a whole tar ({error}); get the whole archive") from error
            files = {m.name.rpartition("/")[2]: m for m in members}
            odd = next((file for file in files if not re.fullmatch(name + r"_\d+\.JPEG", file)), None)
            if odd is not None or not files or len(files) < len(members):
                raise UserError(
                    f"{where}: holds {odd or ('an image twice' if files else 'no images')}; it should hold "
                    f"{name}_1.JPEG and so on; get the whole archive"
                )
            for file in sorted(files):
                places.append(place_of(files[file], inner[name].offset_data))
                names.append(f"{name}/{file}")
                labels.append(label)
            bar.update()
    _check_count(path, "images", len(names), expected.train, "--expect-train")
    return classes, Labelled(Members(path, places), names, labels)


def _ilsvrc_val(path: Path, classes: Sequence[str], truth: Sequence[str], expected: Expected) -> Labelled:
    """Validation images in the order of their numbers, with the label of `truth[number - 1]`."""
    files: Dict[int, tarfile.TarInfo] = {}
    for member in safe_members(path):
        if member.isdir():
            continue
        match = re.fullmatch(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG", member.name)
        if match is None or int(match[1]) in files:
            what = "there twice" if match else "no validation image"
            raise UserError(
                f"{path}: member {member.name!r} is {what}; it "
                "should hold ILSVRC2012_val_00000001.JPEG and so on; get the whole archive"
            )
        files[int(match[1])] = member
    _check_count(path, "images", len(files), expected.val, "--expect-val")
    label = {name: k for k, name in enumerate(classes)}
    numbers = sorted(files)
    for number in numbers:
        if not 1 <= number <= len(truth):
            raise UserError(
                f"{path}: holds {files[number].name}, but the ground truth is of {len(truth)} images; they "
                "should come from the same release"
            )
        if truth[number - 1] not in label:
            raise UserError(
                f"{path}: {files[number].name} is of class {truth[number - 1]}, which has no training "
                "images; they should come from the same release"
            )
    names = [f"{truth[n - 1]}/{files[n].name.rpartition('/')[2]}" for n in numbers]
    return Labelled(Members(path, [place_of(files[n]) for n in numbers]), names, [label[truth[n - 1]] for n in numbers])


def _check_count(path: Path, what: str, found: int, wanted: int, option: str) -> None:
    if found != wanted:
        raise UserError(
            f"{path}: holds {found} {what}, should be {wanted}; get the whole archive, or give "
            f"{option} {found} if it is a subset on purpose"
        )


def _devkit_truth(path: Path) -> List[str]:
    """Class (wnid) of validation image 1, 2, ...: the devkit's ground truth through its table of classes."""
    from scipy.io import loadmat  # a second to import; only for this

    parts = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in harmless(tar, str(path)):
                end = member.name.rpartition("/")[2]
                if member.isfile() and end in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
                    parts[end] = tar.extractfile(member).read()
        if len(parts) < 2:
            raise UserError(
                f"{path}: should hold data/meta.mat and data/ILSVRC2012_validation_ground_truth.txt; download it again"
            )
        synsets = np.atleast_1d(loadmat(io.BytesIO(parts["meta.mat"]), squeeze_me=True)["synsets"])
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
        return [wnids[int(line)] for line in parts["ILSVRC2012_validation_ground_truth.txt"].split()]
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path}: cannot be understood ({type(error).__name__}: {error}); download it again") from error


def _text_truth(path: Path) -> List[str]:
    lines = read_text(path).split("\n")
    lines = lines[:-1] if lines and not lines[-1] else lines
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"n\d{8}", line.strip()):
            raise UserError(
                f"{path}, line {number}: should be the class of validation image {number}, such as n01440764"
            )
    return [line.strip() for line in lines]


# Class folders


def prepare_folder(root: Path, out: Path, how: Encoding, skip: bool = False, workers: int = 0) -> dict:
    """`root/train/<class>` and `root/val|test/<class>` as .rec files in `out`; returns what was done."""
    splits = {path.name: path for path in (root / "train", root / "val", root / "test") if path.is_dir()}
    if "train" not in splits or len(splits) != 2:
        raise UserError(f"{root}: should hold the folders train and either val or test, each with one per class")
    if out.resolve() == root.resolve():
        raise UserError(
            f"--out {out}: the same as --root; name another folder, so that it is clear later which is meant"
        )
    files = {name: class_folders(path) for name, path in splits.items()}
    (_, train), (other, test) = files.items()
    for name in train.keys() ^ test.keys():
        lacking = other if name in train else "train"
        raise UserError(f"{splits[lacking] / name}: no such class folder; both need the same classes")
    listed = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    job = {"data": "folder", "sources": {str(root.resolve()): listed}, **_options(how, skip)}
    with _begun(out, job) as found:
        if found is not None:
            return found
        images = {}
        for name, path in splits.items():
            names = sum(files[name].values(), [])
            labels = [label for label, found in enumerate(files[name].values()) for _ in found]
            images[name] = Labelled(Files(path, names), names, labels)
        return _written(out, job, list(train), images, how, skip, workers)


# Caltech-256


def unpack_caltech(tar: Path, out: Path, n_images: int = 30607) -> dict:
    """The tar's files in `out`; what is there with the right size stays. Returns numbers of classes and images.

    UserError: not a whole tar, a member that leads out of `out`, or other than `n_images` images (clutter included).
    """
    members = safe_members(tar)
    found: Dict[str, List[str]] = {}
    for member in members:
        parts = member.name.split("/")
        if member.isfile() and len(parts) >= 2 and not parts[-2].startswith("."):
            found.setdefault(parts[-2], []).append(parts[-1])
    classes = classes_of({name: files for name, files in found.items() if name[:3].isdigit()}, str(tar))
    _check_count(tar, "images", sum(map(len, classes.values())), n_images, "--expect-images")
    _made(out)
    home = out.resolve()
    files = [member for member in members if member.isfile()]
    source = Members(tar, [place_of(member) for member in files])
    with _progress(f"unpacking {tar.name}", len(source), "file") as bar:
        for row, member in enumerate(files):
            path = out / member.name
            if not path.is_file() or path.stat().st_size != member.size:
                _made(path.parent)
                if home not in (path.parent.resolve(), *path.parent.resolve().parents):
                    raise UserError(f"{path}: a link there leads out of {out}; remove it")
                with replacing(path) as temporary:
                    temporary.write_bytes(source.read(row))
            bar.update()
    return {"classes": len(classes), "images": n_images, "folder": str(out)}


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}; name another folder") from error


# Writing RecordIO


def _options(how: Encoding, skip: bool) -> dict:
    return {"resize": how.resize, "quality": how.quality if how.resize else None, "skip": skip}


@contextlib.contextmanager
def _begun(out: Path, job: dict) -> Iterator[Optional[dict]]:
    """Hold the folder for this job; gives what was done if the job is done.

    UserError: the folder holds another job, done or half done.
    """
    _made(out)
    with turn(out):
        for path in (out / PREPARED, out / f".begun-{PREPARED}"):
            if path.exists():
                found = json.loads(read_text(path))
                if found["job"] != job:
                    raise UserError(
                        f"{path}: made from other files or with other options; name another folder, or "
                        "remove it and the .rec files to start anew"
                    )
                if path.name == PREPARED:
                    yield found
                    return
        write_json(out / f".begun-{PREPARED}", {"job": job})
        yield None


def _written(
    out: Path, job: dict, classes: Sequence[str], splits: Dict[str, Labelled], how: Encoding, skip: bool, workers: int
) -> dict:
    with replacing(out / "classes.txt") as temporary:
        temporary.write_text("".join(name + "\n" for name in classes), encoding="utf-8")
    done = {name: write_records(out / f"{name}.rec", images, how, skip, workers) for name, images in splits.items()}
    report = {
        "job": job,
        "classes": len(classes),
        "images": {name: n for name, (n, _) in done.items()},
        "skipped": [why for _, problems in done.values() for why in problems],
    }
    write_json(out / PREPARED, report)
    (out / f".begun-{PREPARED}").unlink()
    return report


def write_records(
    path: Path, images: Labelled, how: Encoding, skip: bool = False, workers: int = 0
) -> Tuple[int, List[str]]:
    """Write `path` (.rec), .idx and .lst, going on with what a killed run left; number of records, what was skipped.

    The format is that of MXNet's writer, byte by byte; that one can only begin a file anew. An image is checked before
    it is stored. BadImage: one is broken, and `skip` is off; what was written until then is gone on with.
    """
    partial, index = (path.with_name(f".begun-{path.stem}{suffix}") for suffix in (".rec", ".idx"))
    if path.exists():  # it takes its place last
        keys = {int(line.split("\t")[0]) for line in read_text(path.with_suffix(".idx")).splitlines()}
        return len(keys), _why_left_out(images, keys, len(images.names))
    places = _places_to_go_on_from(partial, index)
    first = places[-1][0] + 1 if places else 0
    problems = _why_left_out(images, {key for key, _ in places}, first)

    def encode(row: int) -> Tuple[int, Optional[bytes], Optional[BadImage]]:
        try:
            return row, encoded(images.source.read(row), images.source.name(row), how), None
        except BadImage as error:
            return row, None, error

    workers = workers or physical_cores()
    try:
        with (
            open(partial, "ab") as file,
            open(index, "a", encoding="ascii") as lines,
            _progress(f"writing {path.name}", len(images.names), "img", first) as bar,
            contextlib.closing(in_order(encode, range(first, len(images.names)), workers, 8 * workers)) as found,
        ):
            for row, content, error in found:
                if error is not None and not skip:
                    raise error
                if error is not None:
                    problems.append(str(error))
                else:
                    places.append((row, file.tell()))
                    file.write(record(LABEL.pack(0, images.labels[row], row, 0) + content))
                    lines.write(f"{row}\t{places[-1][1]}\n")
                bar.update()
                if row % _FLUSH == 0:  # the index never knows more than there is
                    file.flush()
                    lines.flush()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{partial}: cannot be written: {error.strerror}; make room, then run the same command again: "
            "it goes on from there"
        ) from error
    if not places:
        raise UserError(f"{path}: none of {len(images.names)} images can be used: {problems[0]}")
    with replacing(path.with_suffix(".idx")) as temporary:
        temporary.write_text("".join(f"{key}\t{place}\n" for key, place in places), encoding="ascii")
    with replacing(path.with_suffix(".lst")) as temporary:
        temporary.write_text(
            "".join(f"{key}\t{images.labels[key]:f}\t{images.names[key]}\n" for key, _ in places), encoding="utf-8"
        )
    os.replace(partial, path)
    index.unlink()
    return len(places), problems


def _why_left_out(images: Labelled, keys: set, end: int) -> List[str]:
    """What was wrong with the rows before `end` that a run until now did not store."""
    problems = []
    for row in range(end):
        if row not in keys:
            try:
                decoded(images.source.read(row), images.source.name(row), REDUCED[8])
                problems.append(f"{images.source.name(row)}: could not be decoded when it was prepared")
            except BadImage as error:
                problems.append(str(error))
    return problems


def _places_to_go_on_from(partial: Path, index: Path) -> List[Tuple[int, int]]:
    """Key and offset of the whole records that a killed run left; both files are cut off after the last of them."""
    if not partial.exists() or not index.exists():
        partial.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
        return []
    lines = index.read_text(encoding="ascii").split("\n")[:-1]  # a torn line has no end
    places = [tuple(map(int, line.split("\t"))) for line in lines]
    end = 0
    with open(partial, "r+b") as file:
        while places:
            file.seek(places[-1][1])
            span = record_span(file.read())
            if span is not None:
                end = places[-1][1] + span
                break
            places.pop()
        file.truncate(end)
    index.write_text("".join(f"{key}\t{place}\n" for key, place in places), encoding="ascii")
    return places


def record(content: bytes) -> bytes:
    """Bytes as MXNet's RecordIO stores them: split where they hold its mark at a multiple of four."""
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


def encoded(content: bytes, name: str, how: Encoding) -> bytes:
    """An image as it is to be stored. BadImage: it cannot be decoded.

    A colour JPEG that is small enough stays as it is: im2rec would enlarge it, and every encoding loses something.
    """
    shape = jpeg_shape(content)
    if how.resize is None or (shape is not None and shape[2] == 3 and min(shape[:2]) <= how.resize):
        decoded(content, name, REDUCED[8])
        return content
    image = decoded(content, name)
    height, width = image.shape[:2]
    scale = how.resize / min(height, width)
    if scale < 1:
        size = max(how.resize, round(width * scale)), max(how.resize, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, how.quality])[1].tobytes()


def _progress(what: str, total: int, unit: str, initial: int = 0) -> tqdm:
    return tqdm(
        desc=what,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        initial=initial,
        file=sys.stderr,
        leave=False,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    )
