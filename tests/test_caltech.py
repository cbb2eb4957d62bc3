"""Caltech-256: the protocol exactly, from the tar as from the folder, and the file that repeats a split."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from gcp.data import datasets as data
from gcp.errors import UserError

SIZES = {"001.ak47": 64, "002.american-flag": 61, "056.dog": 70, "257.clutter": 80}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three classes and clutter, with the strays that the real one has; each image's colour is its class."""
    root = tmp_path_factory.mktemp("caltech") / "256_ObjectCategories"
    for label, (name, n) in enumerate(SIZES.items()):
        (root / name).mkdir(parents=True)
        content = cv2.imencode(".jpg", np.full((20, 24, 3), 60 * label, np.uint8))[1].tobytes()
        for k in range(n):
            (root / name / f"{name[:3]}_{k + 1:04}.jpg").write_bytes(content)
    (root / "056.dog" / "greg").mkdir()
    (root / "056.dog" / "greg" / "notes.jpg").write_bytes(b"somebody's")
    (root / "056.dog" / "RENAME2").write_text("#!/bin/sh")
    return root


@pytest.fixture(scope="module")
def tar(tree):
    path = tree.parent / "256_ObjectCategories.tar"
    with tarfile.open(path, "w") as file:
        file.add(tree, tree.name)
    return path


def load(root, seed=0, **keys):
    return data.load(data.options(name="caltech256", root=str(root), input=(3, 8, 8), **keys), seed)


def mistake(root, **keys) -> str:
    with pytest.raises(UserError) as caught:
        load(root, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sides(found) -> tuple:
    """Rows to train on (held out ones included) and to test."""
    return set(found.train.rows) | set(found.validation.rows), set(found.test.rows)


def test_the_protocol(tree):
    found = load(tree)
    assert found.classes == ("001.ak47", "002.american-flag", "056.dog")  # no clutter
    train, test = sides(found)
    assert not train & test and len(train) + len(test) == len(found.train.labels) == 64 + 61 + 70
    assert np.bincount(found.train.labels[sorted(train)]).tolist() == [60, 60, 60]
    assert np.bincount(found.train.labels[sorted(test)]).tolist() == [4, 1, 10]
    assert not set(found.train.rows) & set(found.validation.rows) and len(found.validation) == 18
    x, y, n = next(found.test.batches(15))
    means = (x[:, 0] * found.test.std[0] + found.test.mean[0]).mean((1, 2))
    assert n == 15 and np.allclose(means, 60 * y, atol=2)


def test_the_seed_decides_the_split(tree):
    first, again, other = (sides(load(tree, seed)) for seed in (1, 1, 2))
    assert first == again and first[1] != other[1]


def test_the_tar_and_any_folder_give_the_same(tree, tar):
    batches = [list(load(root, seed=3).test.batches(8)) for root in (tree, tree.parent, tar)]
    for others in batches[1:]:
        assert all(np.array_equal(a, b) for one, two in zip(batches[0], others) for a, b in zip(one, two))
    assert load(tar).classes == load(tree).classes and sides(load(tar)) == sides(load(tree))


def test_every_seed_can_have_a_split_file_of_its_own(tree, tmp_path):
    for seed in (4, 5):
        assert sides(load(tree, seed=seed, split_file=str(tmp_path / "s{seed}.json"))) == sides(load(tree, seed=seed))
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["s4.json", "s5.json"]


@pytest.mark.parametrize("name", ["split.json", "split.csv"])
def test_a_written_split_is_read_again(tree, tar, tmp_path, name):
    path = tmp_path / "deep" / name
    found = load(tree, seed=4, split_file=str(path))
    text = path.read_text()
    assert sides(load(tar, seed=5, split_file=str(path))) == sides(found) == sides(load(tree, seed=4))
    assert path.read_text() == text
    if name.endswith(".json"):
        content = json.loads(text)
        assert (content["per_class"], content["seed"]) == (60, 4)
        train, test = content["train"], content["test"]
    else:
        rows = list(csv.DictReader(text.splitlines()))
        train, test = ([row["name"] for row in rows if row["split"] == side] for side in ("train", "test"))
    assert len(train) == 180 and len(test) == 15 and len({*train, *test}) == 195
    assert all((tree / name).is_file() for name in train + test)


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda c: c["test"].append(c["train"][0]), "lists 1 of 196 images twice: its two sides overlap"),
        (lambda c: c["train"].append(c["test"].pop()), "has 61 training images of class 056.dog"),
        (lambda c: c["train"].append("001.ak47/other.jpg"), "lists 001.ak47/other.jpg, which does not exist"),
        (lambda c: c["test"].pop(), "which exists"),
        (lambda c: c.pop("test"), "test is missing"),
        (lambda c: c.update(train=5), "train: 5 should be a valid"),
    ],
)
def test_a_split_file_that_does_not_fit(tree, tmp_path, change, part):
    path = tmp_path / "split.json"
    load(tree, split_file=str(path))
    edit(path, change)
    message = mistake(tree, split_file=str(path))
    assert message.startswith(f"{path}: ") and part in message


def test_a_split_file_for_another_number(tree, tmp_path):
    path = tmp_path / "split.csv"
    load(tree, split_file=str(path), per_class=30)
    assert "has 30 training images of class 001.ak47, but data.per_class is 60" in mistake(tree, split_file=str(path))
    path.write_text("split,name\nelse,001.ak47/001_0001.jpg\n")
    assert "has a split that is neither train nor test" in mistake(tree, split_file=str(path))


def test_a_class_that_is_too_small(tree):
    message = mistake(tree, per_class=61)
    assert "class 002.american-flag has 61 images, too few for 61 to train on and one to test" in message


def test_where_there_is_nothing(tmp_path):
    assert "256_ObjectCategories.tar" in mistake(tmp_path / "nowhere.tar")
    (tmp_path / "junk.tar").write_bytes(b"junk" * 200)
    assert mistake(tmp_path / "junk.tar").startswith(f"{tmp_path / 'junk.tar'}: not an uncompressed tar")


def test_a_skipped_image_leaves_the_split_as_it_is(tree, tmp_path):
    copy = tmp_path / "256_ObjectCategories"
    shutil.copytree(tree, copy)
    before = load(copy, seed=7)
    row = int(before.train.rows[5])
    names = [f"{name}/{name[:3]}_{k + 1:04}.jpg" for name, n in list(SIZES.items())[:3] for k in range(n)]
    (copy / names[row]).write_bytes(b"")
    assert f"{copy / names[row]}: not an image" in mistake(copy)
    after = load(copy, seed=7, on_bad_image="skip")
    assert len(after.skipped) == 1 and set(before.train.rows) - set(after.train.rows) == {row}
    assert np.array_equal(before.test.rows, after.test.rows)
