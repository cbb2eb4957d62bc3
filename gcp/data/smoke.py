"""Tiny image folders in the forms of the large data sets, made from scikit-learn's digits and Fashion-MNIST.

configs/smoke.yaml uses them in place of the large ones; each has a few hundred JPEG files, made in seconds.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Optional

import cv2
import numpy as np

from gcp.data import datasets
from gcp.data.base import Split
from gcp.data.prepare import Encoding, prepare_folder
from gcp.errors import UserError
from gcp.storage import locked

ROOT = Path("data/smoke")
SIDES = ((48, 40), (40, 48), (44, 44))  # height, width of the files: as in real folders, not all the same


class Spec(NamedTuple):
    """A set: the source of its images, its form, and the numbers of training and test images per class."""

    source: str  # a data set of gcp.data
    form: str  # "split": train/<class>, val/<class>; "records": train.rec, val.rec; "caltech256": 256_ObjectCategories/
    n_train: int
    n_test: int


SETS: Dict[str, Spec] = {
    "folder": Spec("digits", "split", 40, 20),
    "imagenet": Spec("fashion_mnist", "records", 40, 20),
    "caltech256": Spec("digits", "caltech256", 60, 20),
}


def draw_missing(roots: Optional[Iterable[Optional[str]]] = None) -> List[Path]:
    """Draw the sets that do not exist yet, of all or of those in `roots` (values of `data.root`); returns them."""
    named = [ROOT / name for name in SETS if roots is None or str(ROOT / name) in roots]
    drawn = []
    for folder in named:
        with locked(ROOT):  # only one of several processes draws it
            if not folder.exists():
                draw(folder.name, folder)
                drawn.append(folder)
    return drawn


def draw(name: str, folder: Path) -> None:
    """Write the set called `name` as `folder`, which must not exist; it is written whole or not at all.

    The files are the same every time: the first images of each class, as JPEG, every other one grey. Raises UserError
    if `folder` exists or cannot be written.
    """
    spec = SETS[name]
    if folder.exists():
        raise UserError(f"{folder}: already exists; remove it or choose another folder")
    images = datasets.load(datasets.options(name=spec.source, input=(3, 32, 32)))
    partial = folder.with_name(f".partial-{folder.name}")
    unfinished = partial / "images" if spec.form == "records" else partial
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for label, class_name in enumerate(images.classes):
            # Fashion-MNIST has a class "T-shirt/top", which cannot be the name of a folder.
            said = class_name.replace("/", "-").replace(" ", "-")
            if spec.form == "caltech256":
                place = unfinished / "256_ObjectCategories" / f"{label + 1:03d}.{said}"
                _write(images.train, label, spec.n_train + spec.n_test, place, f"{label + 1:03d}_")
            else:
                _write(images.train, label, spec.n_train, unfinished / "train" / said, "")
                _write(images.test, label, spec.n_test, unfinished / "val" / said, "")
        if spec.form == "caltech256":  # as in the real one, to be left out
            _write(images.test, 0, 5, unfinished / "256_ObjectCategories" / "257.clutter", "257_")
        if spec.form == "records":
            prepare_folder(unfinished, partial, Encoding())
            shutil.rmtree(unfinished)
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: the data set cannot be written ({error.strerror})") from error


def _write(split: Split, label: int, n: int, folder: Path, prefix: str) -> None:
    """Write the split's first `n` images of a class as JPEG files, resized to different sides."""
    rows = split.rows[split.labels[split.rows] == label][:n]
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(split.images[rows][:, 0], 1):
        height, width = SIDES[number % len(SIDES)]
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        if number % 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        _, content = cv2.imencode(".jpg", image)
        (folder / f"{prefix}{number:04d}.jpg").write_bytes(content.tobytes())
