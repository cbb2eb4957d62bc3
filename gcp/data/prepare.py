"""Preparing data sets: check the ILSVRC2012 archives and read them in place, unpack tars safely, write RecordIO files.

Input: archives or class folders. Output: `train.rec`, `val.rec` with .idx and .lst beside them, and `classes.txt`, as
MXNet's im2rec makes them. Everything resumes where a killed run stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
from pydantic import BaseModel

from gcp.data import sources
from gcp.data.datasets import caltech_folder, caltech_tar
from gcp.data.decode import check, decoded, in_order, jpeg_shape, progress
from gcp.data.sources import BadImage
from gcp.errors import UserError
from gcp.runtime import physical_cores
from gcp.storage import locked, read_json, readable, replacing, write_json, write_text, writing

TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
# As published; sizes in bytes.
MD5 = {
    TRAIN_TAR: "1d675b47d978889d74fa0da5fadfb00e",
    VAL_TAR: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
SIZE = {TRAIN_TAR: 147897477120, VAL_TAR: 6744924160}
PREPARED = "prepared.json"
_DEVKIT_BYTES = 2**26  # of a file in the devkit that is read; as published, the archive has 2.5 MB
_FLUSH = 256  # records between two points from which a later run can resume


class Expected(NamedTuple):
    """How many classes, training images and validation images there should be."""

    classes: int = 1000
    train: int = 1281167
    val: int = 50000


class Encoding(NamedTuple):
    """How an image is stored: as it is (`resize` None), or as a JPEG of this quality, short side at most `resize`."""

    resize: Optional[int] = 480
    quality: int = 95

    def described(self, skip: bool) -> dict:
        """What determines the content of the files, apart from the images."""
        return {"resize": self.resize, "quality": self.quality if self.resize else None, "skip": skip}


class Labelled(NamedTuple):
    """Images with names (`class/file`) and labels, in order."""

    source: sources.Source
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
    """Write ImageNet from its archives as train.rec and val.rec in `out`; returns what was done.

    `expected`: the counts of a subset; sizes and checksums, which are those of the whole set, are then not compared.
    `ground_truth`: in place of the devkit, a text file with the class (n01440764) of validation image 1, 2, ...
    Raises UserError if an archive is missing, or is not what it should be.
    """
    archives = [TRAIN_TAR, VAL_TAR] + ([DEVKIT] if ground_truth is None else [])
    for name in archives:
        if not (tars / name).is_file():
            instead = ", or give --ground-truth" if name == DEVKIT else ""
            raise UserError(f"{tars / name}: does not exist; download it from image-net.org (account needed){instead}")
    sizes = {name: (tars / name).stat().st_size for name in archives}
    job = {"data": "imagenet", "sources": sizes, **how.described(skip)}
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
    """Raise UserError unless size and MD5 are the published ones; success is noted in `out`, as it takes minutes."""
    fix = "download it again, or specify with --expect-classes, -train and -val what your own subset holds"
    size = path.stat().st_size
    if size != SIZE.get(path.name, size):
        raise UserError(f"{path}: {size} bytes, but the published archive has {SIZE[path.name]}; {fix}")
    noted = out / f".checked-{path.name}-{size}-{path.stat().st_mtime_ns}"
    if noted.exists():
        return
    digest = hashlib.md5()
    with progress(None, f"md5 of {path.name}", size, "B") as bar, open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 24), b""):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != MD5[path.name]:
        raise UserError(f"{path}: MD5 {digest.hexdigest()}, but the published archive's is {MD5[path.name]}; {fix}")
    noted.touch()


def _numbered(path: Path, pattern: str, what: str, first: str) -> Dict[str, tarfile.TarInfo]:
    """The files in a tar, by what `pattern` captures in their names.

    `what` a file is and the name of the `first` one are for messages. Raises UserError if a name does not match or two
    captures are the same.
    """
    found: Dict[str, tarfile.TarInfo] = {}
    for member in sources.safe_members(path):
        if member.isfile():
            match = re.fullmatch(r"(?:.*/)?" + pattern, member.name)
            if match is None or match[1] in found:
                wrong = f"member {member.name!r} is {'there twice' if match else f'no {what}'}"
                raise UserError(f"{path}: {wrong}; it must hold {first} and so on; get the complete archive")
            found[match[1]] = member
    return found


def _ilsvrc_train(path: Path, expected: Expected) -> Tuple[List[str], Labelled]:
    """Class names and images of a tar that holds a tar for each class, which are read in place."""
    inner = _numbered(path, r"(n\d{8})\.tar", "tar of a class", "n01440764.tar")
    _check_count(path, "classes", len(inner), expected.classes, "--expect-classes")
    classes, names, labels, places = sorted(inner), [], [], []
    with tarfile.open(path, "r:") as outer, progress(None, f"reading {path.name}", len(classes), "class") as bar:
        for label, name in enumerate(classes):
            where = f"{path}, {inner[name].name}"
            try:
                with tarfile.open(fileobj=outer.extractfile(inner[name]), mode="r:") as tar:
                    members = [m for m in sources.harmless(tar, where) if m.isfile()]
            except tarfile.TarError as error:
                raise UserError(f"{where}: not a complete tar ({error}); get the complete archive") from error
            files = {m.name.rpartition("/")[2]: m for m in members}
            odd = next((file for file in files if not re.fullmatch(name + r"_\d+\.JPEG", file)), None)
            if odd is not None or not files or len(files) < len(members):
                held = odd or ("an image twice" if files else "no images")
                raise UserError(
                    f"{where}: holds {held}; it must hold {name}_1.JPEG and so on; get the complete archive"
                )
            for file in sorted(files):
                places.append(sources.place_of(files[file], inner[name].offset_data))
                names.append(f"{name}/{file}")
                labels.append(label)
            bar.update()
    _check_count(path, "images", len(names), expected.train, "--expect-train")
    return classes, Labelled(sources.Members(path, places), names, labels)


def _ilsvrc_val(path: Path, classes: Sequence[str], truth: Sequence[str], expected: Expected) -> Labelled:
    """Validation images in the order of their numbers, with the labels of `truth[number - 1]`."""
    files = _numbered(path, r"ILSVRC2012_val_(\d{8})\.JPEG", "validation image", "ILSVRC2012_val_00000001.JPEG")
    _check_count(path, "images", len(files), expected.val, "--expect-val")
    label = {name: k for k, name in enumerate(classes)}
    names, labels, places = [], [], []
    for number, member in sorted(files.items()):
        of = truth[int(number) - 1] if 1 <= int(number) <= len(truth) else None
        if of not in label:
            why = f"but the ground truth covers {len(truth)} images"
            why = why if of is None else f"which belongs to class {of}, which has no training images"
            raise UserError(f"{path}: holds {member.name}, {why}; they must come from the same release")
        names.append(f"{of}/{member.name.rpartition('/')[2]}")
        labels.append(label[of])
        places.append(sources.place_of(member))
    return Labelled(sources.Members(path, places), names, labels)


def _check_count(path: Path, what: str, found: int, wanted: int, option: str) -> None:
    if found != wanted:
        fix = f"get the complete archive, or give {option} {found} if it is deliberately a subset"
        raise UserError(f"{path}: holds {found} {what}, but {wanted} are expected; {fix}")


def _devkit_truth(path: Path) -> List[str]:
    """Class (wnid) of validation image 1, 2, ...: the devkit's ground truth, mapped by its table of classes."""
    from scipy.io import loadmat  # takes a second to import; only this function needs it

    try:
        with tarfile.open(path, "r:gz") as tar:
            files = {m.name.rpartition("/")[2]: m for m in sources.harmless(tar, str(path)) if m.isfile()}
            wanted = [files[name] for name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt")]
            for member in wanted:
                if member.size > _DEVKIT_BYTES:
                    raise ValueError(f"{member.name} has {member.size:,} bytes, more than {_DEVKIT_BYTES:,}")
            meta, truth = (tar.extractfile(member).read() for member in wanted)
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
        return [wnids[int(line)] for line in truth.split()]
    except UserError:
        raise
    except Exception as error:  # of tarfile, zlib and scipy, each of which has several of its own
        raise UserError(f"{path}: cannot be understood ({type(error).__name__}: {error}); download it again") from error


def _text_truth(path: Path) -> List[str]:
    lines = sources.lines_of(path)
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"n\d{8}", line.strip()):
            wanted = f"the class of validation image {number}, such as n01440764"
            raise UserError(f"{path}, line {number}: must be {wanted}")
    return [line.strip() for line in lines]


# Class folders


def prepare_folder(root: Path, out: Path, how: Encoding, skip: bool = False, workers: int = 0) -> dict:
    """Write `root/train/<class>` and `root/val|test/<class>` as .rec files in `out`; returns what was done.

    Raises UserError if the folders or their images are not as they should be.
    """
    splits = {path.name: path for path in (root / "train", root / "val", root / "test") if path.is_dir()}
    if "train" not in splits or len(splits) != 2:
        raise UserError(f"{root}: must hold the folders train and either val or test, each with one per class")
    if out.resolve() == root.resolve():
        raise UserError(f"--out {out}: the same as --root; choose another folder")
    files = {name: sources.class_folders(path) for name, path in splits.items()}
    sources.same_classes({splits[name]: found for name, found in files.items()})
    images = {}
    for name, path in splits.items():
        names = sum(files[name].values(), [])
        images[name] = Labelled(sources.Files(path, names), names, sources.labels_of(files[name]).tolist())
    listed = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    job = {"data": "folder", "sources": {readable(str(root.resolve())): listed}, **how.described(skip)}
    with _begun(out, job) as found:
        return found or _written(out, job, list(files["train"]), images, how, skip, workers)


# Caltech-256


def unpack_caltech(tar: Path, out: Path, n_images: int = 30607) -> dict:
    """Unpack the tar into `out`, keeping files of the right size; returns the numbers of classes and images, and `out`.

    Raises UserError if the tar is incomplete, a member leads out of `out`, or the number of images (clutter included)
    is not `n_images`.
    """
    found, _ = caltech_tar(tar)
    _check_count(tar, "images", sum(map(len, found.values())), n_images, "--expect-images")
    files = [member for member in sources.safe_members(tar) if member.isfile()]
    source = sources.Members(tar, [sources.place_of(member) for member in files])
    with locked(out), progress(None, f"unpacking {tar.name}", len(source), "file") as bar:
        home = out.resolve()
        for row, member in enumerate(files):
            path = out / member.name
            if not path.is_file() or path.stat().st_size != member.size:
                with writing(path.parent):
                    path.parent.mkdir(parents=True, exist_ok=True)
                if home not in (path.parent.resolve(), *path.parent.resolve().parents):
                    raise UserError(f"{path}: a link there leads out of {out}; remove it")
                with replacing(path) as temporary:
                    temporary.write_bytes(source.read(row))
            bar.update()
        unpacked_to = caltech_folder(out)
        if sources.class_folders(unpacked_to) != found:
            raise UserError(f"{unpacked_to}: also holds images that are not in {tar}; give --out an empty folder")
    return {"classes": len(found), "images": n_images, "folder": str(out)}


# Writing RecordIO


class _Begun(BaseModel):
    """What a folder is being prepared from."""

    job: Dict[str, Any]


class _Prepared(_Begun):
    """What a prepared folder holds."""

    classes: int
    images: Dict[str, int]
    skipped: List[str]


@contextlib.contextmanager
def _begun(out: Path, job: dict) -> Iterator[Optional[dict]]:
    """Lock the folder for this job; yields what was done if the job has been completed, else None.

    Raises UserError if the folder holds another job, completed or not, or images of other origin.
    """
    done, begun = out / PREPARED, out / f".begun-{PREPARED}"
    anew = "choose another folder, or remove it and the .rec files to start over"
    with locked(out):
        known = False
        for path, schema in ((done, _Prepared), (begun, _Begun)):
            if path.exists():
                known, found = True, read_json(path, schema, anew)
                if found.job != job:
                    raise UserError(f"{path}: made from different files or with different options; {anew}")
                if path == done and all((out / f"{name}.rec").exists() for name in found.images):
                    yield found.model_dump()
                    return
        for name in () if known else ("train", "train.rec", "val.rec", "test.rec"):
            if (out / name).exists():
                raise UserError(f"{out / name}: already exists and was not made by this command; choose another folder")
        write_json(begun, {"job": job})
        yield None


def _written(
    out: Path, job: dict, classes: Sequence[str], splits: Dict[str, Labelled], how: Encoding, skip: bool, workers: int
) -> dict:
    """Write all files, and read them as training will.

    Raises UserError before the first image is written if it is clear that training could not read the result.
    """
    _check_names(classes)
    for name, images in splits.items():
        sources.every_class(str(out / f"{name}.rec"), np.array(images.labels), classes)
        _check_names(images.names)
    if len(splits["train"].names) < 2:
        raise UserError(f"{splits['train'].source.name(0)}: a single training image; at least two are needed")
    write_text(out / "classes.txt", "".join(name + "\n" for name in classes))
    done = {name: write_records(out / f"{name}.rec", images, how, skip, workers) for name, images in splits.items()}
    listed = sources.read_classes(out / "classes.txt")
    for name, (n_images, problems) in done.items():  # some may have been skipped
        sources.every_class(str(out / f"{name}.rec"), sources.Records(out / f"{name}.rec").labels, listed)
        if name == "train" and n_images < 2:
            raise UserError(f"{out / 'train.rec'}: holds a single image, but at least two are needed: {problems[0]}")
    report = _Prepared(
        job=job,
        classes=len(classes),
        images={name: n for name, (n, _) in done.items()},
        skipped=[readable(why) for _, problems in done.values() for why in problems],
    ).model_dump()
    write_json(out / PREPARED, report)
    (out / f".begun-{PREPARED}").unlink(missing_ok=True)
    return report


def _check_names(names: Sequence[str]) -> None:
    """Raise UserError for a name that classes.txt or a .lst file, which hold one name per line, cannot hold."""
    for name in names:
        if not name.strip() or re.search("[\t\r\n\ud800-\udfff]", name):
            odd = "a name that is blank, holds tabs or line breaks, or is not UTF-8"
            raise UserError(f"{name!r}: {odd} cannot be listed in a text file; rename it")


def write_records(
    path: Path, images: Labelled, how: Encoding, skip: bool = False, workers: int = 0
) -> Tuple[int, List[str]]:
    """Write `path` (.rec), .idx and .lst, resuming a killed run; returns the number of records, and what was skipped.

    The format is that of MXNet's writer, byte for byte; that writer can only start a file anew. An image is checked
    before it is stored. Raises BadImage if one is broken and `skip` is off; the next run resumes what was written until
    then.
    """
    partial, index = (path.with_name(f".begun-{path.stem}{suffix}") for suffix in (".rec", ".idx"))
    if path.exists():  # it is put in place last
        keys = set(sources.Records(path).keys)
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
            progress(None, f"writing {path.name}", len(images.names), initial=first) as bar,
            contextlib.closing(in_order(encode, range(first, len(images.names)), workers, 8 * workers)) as found,
        ):
            for row, content, error in found:
                if error is not None and not skip:
                    raise error
                if error is not None:
                    problems.append(str(error))
                else:
                    places.append((row, file.tell()))
                    file.write(sources.packed(sources.LABEL.pack(0, images.labels[row], row, 0) + content))
                    lines.write(f"{row}\t{places[-1][1]}\n")
                bar.update()
                if row % _FLUSH == 0:  # the index must not list more than there is
                    file.flush()
                    lines.flush()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fix = "free some space, then run the same command again: it resumes from there"
        raise UserError(f"{partial}: cannot be written: {error.strerror}; {fix}") from error
    if not places:
        raise UserError(f"{path}: none of the {len(images.names)} images can be used: {problems[0]}")
    listed = "".join(f"{key}\t{images.labels[key]:f}\t{images.names[key]}\n" for key, _ in places)
    write_text(path.with_suffix(".idx"), _index(places))
    write_text(path.with_suffix(".lst"), listed)
    os.replace(partial, path)
    index.unlink()
    return len(places), problems


def _index(places: Sequence[Tuple[int, int]]) -> str:
    return "".join(f"{key}\t{place}\n" for key, place in places)


def _why_left_out(images: Labelled, keys: set, end: int) -> List[str]:
    """What was wrong with the rows before `end` that earlier runs did not store."""
    problems = []
    for row in range(end):
        if row not in keys:
            try:
                check(images.source.read(row), images.source.name(row))
                problems.append(f"{images.source.name(row)}: could not be decoded when it was prepared")
            except BadImage as error:
                problems.append(str(error))
    return problems


def _places_to_go_on_from(partial: Path, index: Path) -> List[Tuple[int, int]]:
    """Key and offset of the complete records that a killed run left; both files are cut off after the last of them."""
    if not partial.exists() or not index.exists():
        partial.write_bytes(b"")
        index.write_bytes(b"")
    lines = re.findall(rb"(\d+)\t(\d+)\n", index.read_bytes())  # an unfinished line does not match
    places = [(int(key), int(place)) for key, place in lines]
    end = 0
    with open(partial, "r+b") as file:
        while places:
            file.seek(places[-1][1])
            found = sources.unpacked(file.read())
            if found is not None:
                end = places[-1][1] + found[1]
                break
            places.pop()
        file.truncate(end)
    index.write_text(_index(places), encoding="ascii")
    return places


def encoded(content: bytes, name: str, how: Encoding) -> bytes:
    """An image as it is to be stored. Raises BadImage if it cannot be decoded or cannot be stored.

    A colour JPEG that is small enough stays as it is: im2rec would enlarge it, and every encoding loses something.
    """
    shape = jpeg_shape(content)
    if how.resize is None or (shape is not None and shape[2] == 3 and min(shape[:2]) <= how.resize):
        check(content, name)
        if len(content) > sources.MAX_PIECE - sources.LABEL.size:
            raise BadImage(f"{name}: {len(content):,} bytes, more than a record can hold; make it smaller")
        return content
    image = decoded(content, name)
    height, width = image.shape[:2]
    scale = how.resize / min(height, width)
    if scale < 1:
        size = max(how.resize, round(width * scale)), max(how.resize, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, how.quality])
    if not done:
        raise BadImage(f"{name}: {image.shape[1]}x{image.shape[0]} pixels, more than JPEG can hold; crop or remove it")
    return jpeg.tobytes()
