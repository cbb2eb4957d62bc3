"""The drawn sets: their form, their files, and that they read as data sets."""

from __future__ import annotations

import cv2
import pytest

from gcp import errors
from gcp.data import datasets as data
from gcp.data import smoke


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.jpg"))}


@pytest.mark.slow
def test_digits_as_class_folders(tmp_path):
    smoke.draw("folder", tmp_path / "digits")
    files = contents(tmp_path / "digits")
    assert len(files) == 10 * (40 + 20)
    assert {p.parts[:2] for p in files} == {(split, str(n)) for split in ("train", "val") for n in range(10)}
    assert len(set(files.values())) == len(files), "every image once"
    sides = {cv2.imread(str(tmp_path / "digits" / p), cv2.IMREAD_UNCHANGED).shape for p in files}
    assert {s[:2] for s in sides} == set(smoke.SIDES) and {len(s) for s in sides} == {2, 3}, "some grey, some colour"
    read = data.load(data.options(name="folder", root=str(tmp_path / "digits"), input=(3, 32, 32)))
    assert (len(read.train), len(read.validation), len(read.test)) == (360, 40, 200)
    smoke.draw("folder", tmp_path / "again")
    assert contents(tmp_path / "again") == files


@pytest.mark.slow
def test_fashion_mnist_as_records(tmp_path):
    smoke.draw("imagenet", tmp_path / "f")
    assert {p.name for p in (tmp_path / "f").iterdir() if p.name != "lock"} == {
        "train.rec",
        "train.idx",
        "train.lst",
        "val.rec",
        "val.idx",
        "val.lst",
        "classes.txt",
        "prepared.json",
    }
    read = data.load(data.options(name="folder", root=str(tmp_path / "f"), input=(3, 32, 32)))
    assert (len(read.train), len(read.validation), len(read.test)) == (360, 40, 200)
    assert len(read.classes) == 10 and "T-shirt-top" in read.classes


def test_digits_as_caltech256(tmp_path):
    smoke.draw("caltech256", tmp_path / "c")
    files = contents(tmp_path / "c" / "256_ObjectCategories")
    assert len(files) == 10 * 80 + 5
    assert {str(p.parent) for p in files} == {f"{n + 1:03d}.{n}" for n in range(10)} | {"257.clutter"}


def test_only_what_is_missing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roots = ["data/smoke/folder", "elsewhere/folder", "data/smoke/unknown", None]
    assert smoke.draw_missing(roots) == [smoke.ROOT / "folder"]
    assert smoke.draw_missing(roots) == []
    with pytest.raises(errors.UserError, match="already exists"):
        smoke.draw("folder", smoke.ROOT / "folder")


def test_a_half_drawn_set_does_not_count(tmp_path):
    (tmp_path / ".partial-digits" / "train" / "old").mkdir(parents=True)
    smoke.draw("folder", tmp_path / "digits")
    assert not (tmp_path / "digits" / "train" / "old").exists() and not (tmp_path / ".partial-digits").exists()


def test_an_unwritable_place_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match="cannot be written"):
        smoke.draw("folder", tmp_path / "file" / "digits")
