"""Data: which images are served, in which order, to which part, and what broken files get."""

from __future__ import annotations

import gzip
import os
import re
import struct
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from gcp.data import datasets as data
from gcp.data import decode, sources
from gcp.errors import UserError

N_TRAIN, N_TEST = 40, 15


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def fashion(tmp_path):
    """A folder in Fashion-MNIST's form: image n has its number in the top left corner and label n % 10."""
    rng = np.random.default_rng(0)
    for part, n in (("train", N_TRAIN), ("t10k", N_TEST)):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(n)
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(n) % 10)
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    """Class folders cat and dog (brighter), 6 training and 2 test images each, in four formats."""
    for split, n in (("train", 6), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(n):
                image = np.full((40, 60, 3), 50 + 100 * label, np.uint8)
                suffix = (".jpg", ".JPEG", ".png", ".bmp")[k % 4]
                content = cv2.imencode(suffix.lower(), image)[1].tobytes()
                (tmp_path / split / name / f"{k}{suffix}").write_bytes(content)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def write_records(folder: Path, root: Path) -> None:
    """The images of class folders as RecordIO, by MXNet's own functions, and classes.txt."""
    from mxnet import recordio

    (root / "classes.txt").write_text("cat\ndog\n")
    for split in ("train", "test"):
        record = recordio.MXIndexedRecordIO(str(root / f"{split}.idx"), str(root / f"{split}.rec"), "w")
        paths = sorted((folder / split).glob("*/[0-9]*"))
        for key, path in enumerate(paths):
            label = ("cat", "dog").index(path.parent.name)
            record.write_idx(key, recordio.pack(recordio.IRHeader(0, label, key, 0), path.read_bytes()))
        record.close()


def load(name, root=None, seed=0, **keys):
    return data.load(data.options(name=name, root=None if root is None else str(root), **keys), seed)


def mistake(name, root, **keys) -> str:
    with pytest.raises(UserError) as caught:
        for split in vars(load(name, root, **keys)).values():
            if isinstance(split, data.Split):
                list(split.batches(4))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def raw(split, x) -> np.ndarray:
    """Normalised images as their uint8 values again."""
    return np.rint(x * split.std[:, None, None] + split.mean[:, None, None]).astype(int)


def numbers(split, batches) -> list[int]:
    """The numbers written into the corner of Fashion-MNIST's stand-ins, over all batches."""
    return [int(n) for x, _, _ in batches for n in raw(split, x)[:, 0, 2, 2]]


# Splits


def test_the_splits_divide_the_training_images(fashion):
    found = load("fashion_mnist", fashion, validation=0.25)
    assert (found.name, found.shape, len(found.classes)) == ("fashion_mnist", (3, 32, 32), 10)
    assert (len(found.train), len(found.validation), len(found.test)) == (30, 10, N_TEST)
    used = [numbers(s, s.batches(8)) for s in (found.train, found.validation)]
    assert set(used[0]) | set(used[1]) == set(range(N_TRAIN)) and not set(used[0]) & set(used[1])


def test_validation_images_come_from_every_class(fashion):
    found = load("fashion_mnist", fashion, validation=0.25)
    _, labels, n = next(found.validation.batches(10))
    assert n == 10 and sorted(labels) == list(range(10))


def test_the_seed_decides_the_validation_images_only(fashion):
    first, again, other = (load("fashion_mnist", fashion, seed=seed, n_train=20, validation=0.5) for seed in (1, 1, 2))
    rows = [set(d.validation.rows) for d in (first, again, other)]
    assert rows[0] == rows[1] != rows[2]
    everything = [
        set(numbers(d.train, d.train.batches(10)) + numbers(d.validation, d.validation.batches(10)))
        for d in (first, other)
    ]
    assert everything[0] == everything[1] and len(everything[0]) == 20


@pytest.mark.parametrize(
    "n_train, validation, sizes",
    [
        (2, 0.5, (1, 1)),
        (2, 0.01, (1, 1)),
        (3, 0.5, (1, 2)),
        (20, 0.1, (18, 2)),
        (1000, 0.5, (20, 20)),
        (None, 0.01, (39, 1)),
    ],
)
def test_sizes_of_the_splits(fashion, n_train, validation, sizes):
    found = load("fashion_mnist", fashion, n_train=n_train, validation=validation)
    assert (len(found.train), len(found.validation)) == sizes


# Batches


def test_evaluation_batches_are_in_order_and_count_every_image_once(fashion):
    test = load("fashion_mnist", fashion).test
    batches = list(test.batches(4))
    assert [n for _, _, n in batches] == [4, 4, 4, 3] and test.n_batches(4) == 4
    assert numbers(test, batches) == [*range(15), 14]  # filled up with the last image
    assert [int(label) for _, y, n in batches for label in y[:n]] == [n % 10 for n in range(15)]


@pytest.mark.parametrize("size", [1, 7, 36, 100])
def test_training_batches_are_full_and_wrap_around(fashion, size):
    train = load("fashion_mnist", fashion).train
    batches = list(train.batches(size, seed=3))
    assert len(batches) == train.n_batches(size)
    for x, y, n_valid in batches:
        assert x.shape == (size, 3, 32, 32) and x.dtype == np.float32 and x.flags.c_contiguous
        assert y.shape == (size,) and y.dtype == np.int32 and n_valid == size
    seen = numbers(train, batches)
    assert len(set(seen[:36])) == 36
    assert seen[36:] == (seen[:36] * 3)[: len(seen) - 36]


def test_labels_stay_with_their_images(fashion):
    train = load("fashion_mnist", fashion).train
    for x, y, _ in train.batches(8, seed=0):
        assert (raw(train, x)[:, 0, 2, 2] % 10 == y).all()


def test_a_seed_repeats_a_pass_and_another_does_not(fashion):
    train = load("fashion_mnist", fashion).train
    passes = [
        np.concatenate([x for x, _, _ in train.batches(6, seed=seed, augment="crop_flip")])
        for seed in ((7, 1), (7, 1), (7, 2))
    ]
    assert np.array_equal(passes[0], passes[1]) and not np.array_equal(passes[0], passes[2])


def test_augmentation_needs_a_seed(fashion):
    with pytest.raises(ValueError, match="needs a seed"):
        next(load("fashion_mnist", fashion).train.batches(4, augment="crop"))


def test_normalised_training_images_have_mean_0_and_deviation_1(fashion):
    found = load("fashion_mnist", fashion, input=(3, 28, 28), validation=0.01)
    x = np.concatenate([next(s.batches(len(s)))[0] for s in (found.train, found.validation)])
    assert abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-5


# Parts, resuming, threads: the same bits as one pass in one go


@pytest.fixture(params=["memory", "disk", "records"])
def stored(request, folder, monkeypatch, tmp_path_factory):
    """The 12 training images of `folder`, served from memory, from class folders and from RecordIO."""
    root = folder
    if request.param == "records":
        root = tmp_path_factory.mktemp("records")
        write_records(folder, root)
    if request.param != "memory":
        monkeypatch.setattr(data, "_MEMORY_LIMIT", 0)
    return lambda **keys: load("imagenet", root, input=(3, 16, 16), validation=0.01, **keys)


def served(split, size, **how) -> list:
    return list(split.batches(size, **how))


def same(batches, others) -> bool:
    return len(batches) == len(others) and all(
        np.array_equal(x, u) and np.array_equal(y, v) and n == m for (x, y, n), (u, v, m) in zip(batches, others)
    )


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "imagenet"])
def test_parts_add_up_to_the_joined_batch(stored, augment):
    train = stored(augment=augment).train
    whole = served(train, 4, seed=(1, 2), augment=augment)
    for n in (2, 4):
        parts = [served(train, 4, seed=(1, 2), augment=augment, part=(rank, n)) for rank in range(n)]
        joined = [
            (
                np.concatenate([x for x, _, _ in rows]),
                np.concatenate([y for _, y, _ in rows]),
                sum(n for _, _, n in rows),
            )
            for rows in zip(*parts)
        ]
        assert same(whole, joined)


def test_the_parts_of_a_short_last_batch(stored):
    test = stored().test  # 4 images: batches of 6 are short by 2
    parts = [served(test, 6, part=(rank, 3)) for rank in range(3)]
    assert [n for ((_, _, n),) in parts] == [2, 2, 0]
    ((x, y, _),) = parts[2]
    assert len(x) == 2 and len(y) == 2 and y[0] == y[1]


def test_a_batch_that_cannot_be_divided(stored):
    with pytest.raises(UserError, match="a batch of 4 images cannot be divided into 3 equal parts; set data.batch"):
        stored().train.batches(4, seed=0, part=(0, 3))


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "imagenet"])
def test_a_pass_goes_on_in_the_middle(stored, augment):
    train = stored(augment=augment).train
    whole = served(train, 3, seed=(1, 2), augment=augment)
    assert len(whole) == 4
    for first in range(5):
        assert same(whole[first:], served(train, 3, seed=(1, 2), augment=augment, first=first))


def test_batches_that_are_skipped_are_not_decoded(stored, monkeypatch):
    train = stored(augment="imagenet").train
    read, image = [], data.Pictures.varied
    monkeypatch.setattr(data.Pictures, "varied", lambda self, row, rng: read.append(row) or image(self, row, rng))
    served(train, 3, seed=0, augment="imagenet", first=3)
    assert len(read) == 3


@pytest.mark.parametrize("augment", ["crop_flip", "imagenet"])
def test_the_number_of_threads_changes_nothing(stored, augment):
    one, many = (served(stored(augment=augment, workers=n).train, 3, seed=5, augment=augment) for n in (1, 4))
    assert same(one, many)


def test_the_recipe_changes_with_the_epoch_and_the_place(stored):
    train = stored(augment="imagenet").train
    passes = [
        np.concatenate([x for x, _, _ in served(train, 4, seed=(0, epoch), augment="imagenet")]) for epoch in range(2)
    ]
    # Of one colour each, so that two of the 24 may come out alike; without a generator each there would be few.
    assert len({image.tobytes() for image in np.concatenate(passes)}) >= 20


def test_leaving_a_pass_early_leaves_no_thread(stored):
    batches = stored(augment="imagenet").train.batches(3, seed=0, augment="imagenet")
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_the_recipe_takes_grey_images_from_memory():
    train = load("digits", input=(3, 16, 16), n_train=40).train
    ((x, _, _),) = served(train, 36, seed=0, augment="imagenet")
    assert x.shape == (36, 3, 16, 16) and x.std() > 0.5
    assert not np.array_equal(x[:, 0], x[:, 1])  # lighting colours them


# Augmentation


def test_an_augmented_batch_takes_little_time():
    images = np.zeros((640, 3, 32, 32), np.uint8)
    mean, std = np.zeros(3, np.float32), np.ones(3, np.float32)
    split = data.Split(images, np.zeros(640, np.int32), np.arange(640), mean, std)
    times = []
    for _ in range(5):
        start = time.process_time()  # not of the others on a busy machine
        list(split.batches(64, seed=0, augment="crop_flip"))
        times.append((time.process_time() - start) / 10)
    assert min(times) < 3e-3


# Digits


def test_digits_are_real_and_fixed():
    found = load("digits", input=(3, 8, 8))
    assert (len(found.train) + len(found.validation), len(found.test)) == (1438, 359)
    assert found.classes == tuple("0123456789")
    x, y, _ = next(found.test.batches(359))
    assert np.ptp(np.bincount(y)) <= 2  # every class alike
    assert (raw(found.test, x)[:, 0] == raw(found.test, x)[:, 2]).all()
    other = load("digits", input=(3, 8, 8), seed=5, n_train=100)
    assert np.array_equal(next(other.test.batches(359))[0], x)
    # Real handwriting: the mean images of the training digits alone tell most of the test digits.
    train, labels, _ = next(found.train.batches(len(found.train)))
    means = np.stack([train[labels == digit].mean(0) for digit in range(10)])
    nearest = ((x[:, None] - means) ** 2).sum((2, 3, 4)).argmin(1)
    assert (nearest == y).mean() > 0.85


def test_digits_at_the_size_asked_for():
    found = load("digits", input=(3, 32, 24), n_train=50)
    assert found.shape == (3, 32, 24)
    assert next(found.test.batches(2))[0].shape == (2, 3, 32, 24)


# Fashion-MNIST


def test_28_pixels_are_framed_with_black_to_32(fashion):
    test = load("fashion_mnist", fashion).test
    framed = raw(test, next(test.batches(N_TEST))[0])
    plain_test = load("fashion_mnist", fashion, input=(3, 28, 28)).test
    plain = raw(plain_test, next(plain_test.batches(N_TEST))[0])
    assert np.array_equal(framed[:, :, 2:30, 2:30], plain)
    assert framed.sum() == plain.sum()


def test_other_sizes_are_resized(fashion):
    assert next(load("fashion_mnist", fashion, input=(3, 56, 40)).test.batches(2))[0].shape == (2, 3, 56, 40)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-20])


def short(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def long(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\0"))


def header_only(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:6]))


def not_gzip(path):
    path.write_bytes(gzip.decompress(path.read_bytes()))


def garbled(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def bomb(path):
    """A header that promises more than anybody has, and gigabytes of zeros behind it."""
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**20, 2**10, 2**10)
    path.write_bytes(gzip.compress(header) + gzip.compress(bytes(2**24)) * 300)


def floats(path):
    path.write_bytes(gzip.compress(bytes((0, 0, 13, 3)) + bytes(40)))


@pytest.mark.parametrize(
    "damage, part",
    [
        (truncated, "truncated or not a gzip file"),
        (short, "bytes but holds"),
        (long, "bytes but holds"),
        (header_only, "truncated within its header"),
        (not_gzip, "truncated or not a gzip file"),
        (garbled, ""),
        (empty, ""),
        (floats, "not an IDX file"),
        (bomb, ""),
    ],
)
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_a_damaged_idx_file_is_named(fashion, damage, part, file):
    damage(fashion / file)
    message = mistake("fashion_mnist", fashion)
    assert message.startswith(f"{fashion / file}: ") and part in message
    assert message.endswith("; replace it with a complete copy")


def test_images_where_labels_should_be(fashion):
    (fashion / "train-images-idx3-ubyte.gz").replace(fashion / "train-labels-idx1-ubyte.gz")
    write_idx(fashion / "train-images-idx3-ubyte.gz", np.zeros((N_TRAIN, 28, 28)))
    message = mistake("fashion_mnist", fashion)
    assert "train-labels-idx1-ubyte.gz: not an IDX file of 1-dimensional byte data" in message


def test_labels_of_another_copy(fashion):
    write_idx(fashion / "t10k-labels-idx1-ubyte.gz", np.zeros(N_TEST - 1))
    assert f"holds {N_TEST - 1} labels for the {N_TEST} images" in mistake("fashion_mnist", fashion)


def test_a_label_out_of_range(fashion):
    write_idx(fashion / "t10k-labels-idx1-ubyte.gz", np.full(N_TEST, 10))
    assert "t10k-labels-idx1-ubyte.gz: holds the label 10" in mistake("fashion_mnist", fashion)


def test_a_missing_idx_file(fashion):
    (fashion / "t10k-images-idx3-ubyte.gz").unlink()
    message = mistake("fashion_mnist", fashion)
    assert f"{fashion}: Fashion-MNIST file t10k-images-idx3-ubyte.gz does not exist" in message
    assert "train-images-idx3-ubyte.gz does not exist" in mistake("fashion_mnist", fashion / "nowhere")


@pytest.mark.slow
def test_the_part_that_comes_with_the_package():
    found = load("fashion_mnist")
    assert (len(found.train), len(found.validation), len(found.test)) == (9000, 1000, 10000)
    assert np.bincount(found.train.labels).tolist() == np.bincount(found.test.labels).tolist() == [1000] * 10
    # Real clothes: the mean images of the training classes alone tell most of the test images.
    train, labels, _ = next(found.train.batches(len(found.train)))
    x, y, _ = next(found.test.batches(2000))
    means = np.stack([train[labels == label].mean(0) for label in range(10)]).reshape(10, -1)
    nearest = ((x.reshape(2000, 1, -1) - means) ** 2).sum(2).argmin(1)
    assert (nearest == y).mean() > 0.6


def test_the_part_is_what_the_whole_set_gives(monkeypatch):
    """A cut of the whole set by the same rule is the part, so that numbers do not depend on where files lie."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 60000)
    images = rng.integers(0, 256, (60000, 2, 2), np.uint8)
    test = images[:10], labels[:10]
    part = data.capped(labels, data.N_FASHION_PART)
    stored = {"whole": (images, labels), "part": (images[part], labels[part])}
    reads = []
    monkeypatch.setattr(data, "_fashion_root", lambda given: Path("."))
    monkeypatch.setattr(data, "_read_idx", lambda path, n_dims: reads.pop(0))

    def served(kind, n_train):
        reads[:] = [*stored[kind], *test]
        return load("fashion_mnist", input=(3, 2, 2), n_train=n_train).train

    for n_train in (50, 9999, 10000):
        whole, cut = (served(kind, n_train) for kind in ("whole", "part"))
        assert np.array_equal(whole.images, cut.images) and np.array_equal(whole.labels, cut.labels)
        assert np.array_equal(whole.rows, cut.rows) and np.array_equal(whole.mean, cut.mean)
    assert np.array_equal(served("whole", 34000).images[:, 0], images[data.capped(labels, 34000)])


def test_more_than_the_part_is_looked_for_in_the_known_folders(fashion, monkeypatch):
    monkeypatch.setattr(data, "_FASHION_FOLDERS", (str(fashion / "nowhere"), str(fashion)))
    assert len(load("fashion_mnist", n_train=10001).test) == N_TEST
    monkeypatch.setattr(data, "_FASHION_FOLDERS", (str(fashion / "nowhere"),))
    message = mistake("fashion_mnist", None, n_train=10001)
    assert "dataset-fashion-mnist" in message and "data.root" in message and "at most 10000" in message


def test_a_damaged_part_is_refused(tmp_path, monkeypatch):
    for path in data.FASHION_PART.glob("*.gz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(data, "FASHION_PART", tmp_path)
    assert len(load("fashion_mnist").test) == 10000
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1])
    assert mistake("fashion_mnist", None).startswith(f"{path}: not the file that comes with this package")
    path.unlink()
    assert mistake("fashion_mnist", None).startswith(f"{path}: not the file that comes with this package")


@pytest.mark.parametrize(
    "keys, part",
    [
        (
            {"name": "digits", "root": "x"},
            "root is for --data fashion_mnist or folder or imagenet or images or caltech256",
        ),
        ({"name": "fashion_mnist", "workers": 2}, "workers is for --data folder or imagenet or images or caltech256"),
        ({"name": "imagenet", "root": "x", "per_class": 30}, "per_class is for --data caltech256"),
        ({"name": "folder"}, "--data folder needs a root"),
        ({"name": "digitz"}, "--data 'digitz' should be 'digits'"),
        ({"name": "fashion_mnist", "n_train": 60001}, "n_train: 60001 should be less than or equal to 60000"),
    ],
)
def test_a_data_set_takes_its_own_keys_only(keys, part):
    with pytest.raises(UserError, match=re.escape(part)):
        data.options(**keys)


# Folders of class folders


def test_class_folders(folder):
    found = load("folder", folder, validation=0.25)
    assert found.classes == ("cat", "dog")
    assert (len(found.train), len(found.validation), len(found.test)) == (9, 3, 4)
    assert isinstance(found.train.images, decode.Decoded)  # a small data set stays in memory
    x, y, _ = next(found.train.batches(9))
    assert np.allclose(raw(found.train, x), 50 + 100 * y[:, None, None, None], atol=2)


def test_class_folders_too_large_for_memory_are_decoded_batch_by_batch(folder, monkeypatch):
    small = load("folder", folder)
    monkeypatch.setattr(data, "_MEMORY_LIMIT", 0)
    large = load("folder", folder)
    assert isinstance(large.train.images, decode.Pictures)
    for (x, y, n), (x_large, y_large, n_large) in zip(
        small.train.batches(4, seed=1, augment="crop"), large.train.batches(4, seed=1, augment="crop")
    ):
        assert np.array_equal(x, x_large) and np.array_equal(y, y_large) and n == n_large


def test_val_stands_in_for_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(load("folder", folder).test) == 4


@pytest.mark.parametrize("limit", [10**9, 0])
@pytest.mark.parametrize(
    "file, damage, part",
    [
        ("train/cat/0.jpg", lambda content: content[: len(content) // 2], "truncated image"),
        ("test/dog/0.jpg", lambda content: content[:-1], "truncated image"),
        ("train/dog/1.JPEG", lambda content: b"<html>not found</html>", "not an image that OpenCV can decode"),
        ("train/dog/2.png", lambda content: content[:-20], "truncated image"),
        ("train/dog/3.bmp", lambda content: content[:-1], "truncated image"),
        ("test/cat/1.JPEG", lambda content: b"", "not an image that OpenCV can decode"),
    ],
)
def test_a_broken_image_is_named(folder, monkeypatch, limit, file, damage, part):
    monkeypatch.setattr(data, "_MEMORY_LIMIT", limit)
    path = folder / file
    path.write_bytes(damage(path.read_bytes()))
    assert mistake("folder", folder).startswith(f"{path}: {part}")


def test_an_image_that_vanished(folder, monkeypatch):
    monkeypatch.setattr(data, "_MEMORY_LIMIT", 0)
    found = load("folder", folder)
    (folder / "test/cat/0.jpg").unlink()
    with pytest.raises(UserError, match="test/cat/0.jpg: image cannot be read: No such file"):
        next(found.test.batches(4))


def test_a_class_folder_without_images(folder):
    for path in (folder / "test" / "dog").iterdir():
        path.unlink()
    assert mistake("folder", folder).startswith(f"{folder / 'test' / 'dog'}: class folder without images")


def test_a_pipe_among_the_images_is_no_image(folder):
    path = next((folder / "train" / "dog").iterdir())
    path.unlink()
    os.mkfifo(path)
    assert mistake("folder", folder).startswith(f"{path}: is not a regular file")


@pytest.mark.parametrize("extra, missing", [("train/emu", "test/emu"), ("test/emu", "train/emu")])
def test_a_class_of_one_split_only(folder, extra, missing):
    (folder / extra).mkdir()
    cv2.imwrite(str(folder / extra / "0.png"), np.zeros((8, 8, 3), np.uint8))
    assert mistake("folder", folder).startswith(f"{folder / missing}: no such class folder")


def test_folders_that_are_no_data_set(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert mistake("folder", nowhere).startswith(f"{nowhere}: does not exist; set data.root")
    (tmp_path / "train").mkdir()
    assert mistake("folder", tmp_path).startswith(f"{tmp_path}: must hold the folders train and test")
    (tmp_path / "test").mkdir()
    assert mistake("folder", tmp_path).startswith(f"{tmp_path / 'train'}: holds no class folders")


def test_images_without_labels_are_no_data_to_evaluate_on():
    with pytest.raises(UserError, match="--data images: has no labels to compare with; give one with labels"):
        data.options(name="images", root="a")


def test_too_few_images_to_divide(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "only").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / split / "only" / "0.png"), np.zeros((8, 8, 3), np.uint8))
    assert mistake("folder", tmp_path).startswith(f"{tmp_path}: holds a single training image")


def test_both_forms_at_once(folder):
    (folder / "train.rec").write_bytes(b"")
    assert mistake("folder", folder).startswith(f"{folder}: holds both train/ and train.rec")


def test_imagenet_says_what_to_download(tmp_path):
    assert mistake("imagenet", tmp_path).endswith("run scripts/prepare.py imagenet")


# Bad images that are skipped


@pytest.mark.parametrize("limit", [10**9, 0])
def test_skipped_images_are_named_and_change_nothing_else(folder, monkeypatch, limit):
    monkeypatch.setattr(data, "_MEMORY_LIMIT", limit)
    whole = load("folder", folder, on_bad_image="skip", validation=0.25)
    assert whole.skipped == ()
    row, test_row = int(whole.train.rows[3]), 1
    paths = [sorted((folder / split).glob("*/[0-9]*"))[k] for split, k in (("train", row), ("test", test_row))]
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    paths[1].unlink()
    paths[1].symlink_to("nowhere")
    found = load("folder", folder, on_bad_image="skip", validation=0.25)
    assert found.skipped == (
        f"{paths[0]}: truncated image; replace or remove it",
        f"{paths[1]}: image cannot be read: No such file or directory; replace or remove it",
    )
    assert found.train.rows.tolist() == [r for r in whole.train.rows if r != row]
    assert np.array_equal(found.validation.rows, whole.validation.rows)
    assert [n for _, _, n in found.test.batches(2)] == [2, 1]  # three images count
    assert len(list(found.train.batches(4, seed=0))) == 2


def test_what_a_check_found_is_noted_for_a_name_that_is_not_utf_8(folder, monkeypatch):
    monkeypatch.setattr(data, "_MEMORY_LIMIT", 0)
    with open(os.fsencode(folder) + b"/train/cat/\xff.jpg", "wb") as file:
        file.write(b"junk")
    for _ in range(2):
        (why,) = load("folder", folder, on_bad_image="skip").skipped
        assert why.startswith(f"{folder}/train/cat/\\udcff.jpg: not an image")


def test_what_a_check_found_is_noted_until_a_file_changes(folder, monkeypatch):
    monkeypatch.setattr(data, "_MEMORY_LIMIT", 0)
    path = folder / "train/cat/0.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    first = load("folder", folder, on_bad_image="skip")
    looked = []
    monkeypatch.setattr(data.Pictures, "problem", lambda self, row: looked.append(row))
    assert load("folder", folder, on_bad_image="skip").skipped == first.skipped and len(first.skipped) == 1
    assert not looked
    path.write_bytes(whole)
    assert load("folder", folder, on_bad_image="skip").skipped == () and looked


def test_small_sets_are_checked_before_the_training_with_the_recipe_too(folder):
    (folder / "train/cat/0.jpg").write_bytes(b"junk")
    with pytest.raises(UserError, match="train/cat/0.jpg: not an image"):
        load("folder", folder, augment="imagenet")
    assert len(load("folder", folder, augment="imagenet", on_bad_image="skip").skipped) == 1


def test_nothing_is_left(folder):
    for path in (folder / "test").glob("*/*"):
        path.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"none of the 4 images can be used"):
        load("folder", folder, on_bad_image="skip")


# RecordIO


@pytest.fixture
def records(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    write_records(folder, root)
    return root


def test_records_are_the_same_data_set_as_their_class_folders(folder, records):
    for augment in ("none", "imagenet"):
        ours, theirs = (load("folder", root, augment=augment) for root in (folder, records))
        assert ours.classes == theirs.classes
        for name in ("train", "validation", "test"):
            assert same(served(getattr(ours, name), 3), served(getattr(theirs, name), 3))
        assert same(served(ours.train, 3, seed=1, augment=augment), served(theirs.train, 3, seed=1, augment=augment))


def test_classes_of_records(folder, records):
    sizes = {path: data.options(name="imagenet", root=str(path)).known_size() for path in (records, folder)}
    assert sizes == {records: (2, 12), folder: (2, 12)}
    (records / "classes.txt").unlink()
    assert load("imagenet", records).classes == ("0", "1")
    assert data.options(name="folder", root=str(records)).known_size() == (2, 12)
    (records / "classes.txt").write_text("cat\n")
    assert "names 1 classes, but there are images of class 1" in mistake("imagenet", records)
    (records / "classes.txt").write_text("cat\ndog\nemu\n")
    assert f"{records / 'train.rec'}: holds no image of class 2 (emu)" in mistake("imagenet", records)


def test_records_without_index_and_truncated(records):
    content = (records / "test.rec").read_bytes()
    (records / "test.rec").write_bytes(content[:-30])
    assert mistake("imagenet", records).startswith(f"{records / 'test.rec'}, record 3: truncated record")
    (records / "test.idx").unlink()
    assert mistake("imagenet", records).startswith(f"{records / 'test.idx'}: does not exist")


def test_a_bad_record_is_named(records):
    content = (records / "train.rec").read_bytes()
    (records / "train.rec").write_bytes(content.replace(b"\x89PNG", b"JUNK", 1))
    row = next(k for k in range(12) if content.find(b"\x89PNG") < sources.Records(records / "train.rec")._ends[k])
    assert mistake("imagenet", records).startswith(f"{records / 'train.rec'}, record {row}: not an image")
