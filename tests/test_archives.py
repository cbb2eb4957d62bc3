"""Preparing: the format of MXNet's own writer, archives of ILSVRC's form, what is refused, going on after a kill."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat
from test_images import CONTENTS, jpeg, smooth

from gcp.data import datasets as data
from gcp.data import decode, prepare, sources
from gcp.data.prepare import Encoding, Expected
from gcp.errors import UserError

REPO = Path(__file__).resolve().parents[1]
RAW = Encoding(None)
WNIDS = ("n01440764", "n01443537", "n02085620")
SUBSET = Expected(classes=3, train=9, val=6)


def add(tar, name, content) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def packed(**files) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            add(tar, name, content)
    return file.getvalue()


def photo(label, k) -> bytes:
    """A picture whose red says the class, green the image."""
    return jpeg(np.zeros((40, 50, 3), np.uint8) + np.array((60 * label, 20 * k, 0), np.uint8))


def savemat_bytes(is_table) -> bytes:
    """A compressed file of MATLAB 5, with the table of classes or another."""
    kinds = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "num_children")]
    file = io.BytesIO()
    rows = np.array([(k, f"n{k:08}", 0) for k in range(1, 60)], kinds)
    savemat(file, {"synsets" if is_table else "other": rows}, do_compression=True)
    return file.getvalue()


@pytest.fixture
def ilsvrc(tmp_path):
    """The three archives' form with 3 classes, 3 training and 2 validation images each, ids not in wnids' order."""
    folder = tmp_path / "tars"
    folder.mkdir()
    inner = {
        f"{name}.tar": packed(**{f"{name}_{k}.JPEG": photo(label, k) for k in (1, 10, 2)})
        for label, name in enumerate(WNIDS)
    }
    (folder / prepare.TRAIN_TAR).write_bytes(packed(**{name: inner[name] for name in sorted(inner, reverse=True)}))
    ids = {WNIDS[0]: 2, WNIDS[1]: 3, WNIDS[2]: 1}
    truth = [WNIDS[k % 3] for k in range(6)]
    (folder / prepare.VAL_TAR).write_bytes(
        packed(**{f"ILSVRC2012_val_{k + 1:08}.JPEG": photo(k % 3, k) for k in reversed(range(6))})
    )
    kinds = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    rows = [(ids[name], name, "fish", "a fish", 0) for name in WNIDS] + [(4, "n00000000", "animal", "all", 2)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds)})
    with tarfile.open(folder / prepare.DEVKIT, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(
            tar,
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
            "".join(f"{ids[name]}\n" for name in truth).encode(),
        )
    (folder / "truth.txt").write_text("".join(name + "\n" for name in truth))
    return folder


def mistake(function, *args, **keys) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# RecordIO


def test_files_are_those_of_mxnets_writer_byte_by_byte(tmp_path):
    from mxnet import recordio

    pictures = [smooth(30 + k, 40) for k in range(3)]
    theirs = recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "w")
    ours, lines = b"", ""
    for key, content in enumerate([*CONTENTS, *pictures]):
        header = recordio.IRHeader(0, key % 2, key, 0)
        is_picture = not isinstance(content, bytes)
        theirs.write_idx(
            key, recordio.pack_img(header, content, quality=90) if is_picture else recordio.pack(header, content)
        )
        if is_picture:
            content = prepare.encoded(cv2.imencode(".png", content)[1].tobytes(), "a", Encoding(480, 90))
        lines += f"{key}\t{len(ours)}\n"
        ours += sources.packed(sources.LABEL.pack(0, key % 2, key, 0) + content)
    theirs.close()
    assert (tmp_path / "a.rec").read_bytes() == ours and (tmp_path / "a.idx").read_text() == lines


def test_how_images_are_stored():
    small, large = jpeg(smooth(90, 120)), jpeg(smooth(200, 300))
    assert prepare.encoded(small, "a", Encoding(100)) == small
    assert prepare.encoded(large, "a", RAW) == large
    assert decode.jpeg_shape(prepare.encoded(large, "a", Encoding(100))) == (100, 150, 3)
    grey = prepare.encoded(jpeg(smooth(90, 120)[..., 0]), "a", Encoding(100))
    assert decode.jpeg_shape(grey) == (90, 120, 3)  # as a colour JPEG
    with pytest.raises(sources.BadImage, match="^a: truncated"):
        prepare.encoded(small[:-9], "a", RAW)


# ILSVRC2012


@pytest.mark.parametrize("how", [RAW, Encoding(32)])
@pytest.mark.parametrize("with_devkit", [True, False])
def test_imagenet_from_its_archives(ilsvrc, tmp_path, how, with_devkit):
    truth = None if with_devkit else ilsvrc / "truth.txt"
    done = prepare.prepare_imagenet(ilsvrc, tmp_path / "out", how, SUBSET, truth)
    assert (done["classes"], done["images"], done["skipped"]) == (3, {"train": 9, "val": 6}, [])
    found = data.load(data.options(name="imagenet", root=str(tmp_path / "out"), input=(3, 16, 16), validation=0.01))
    assert found.classes == WNIDS and (len(found.train), len(found.validation), len(found.test)) == (8, 1, 6)
    x, y, _ = next(found.test.batches(6))
    red, green = np.rint((x * found.test.std[:, None, None] + found.test.mean[:, None, None])[:, :2].mean((2, 3))).T
    assert y.tolist() == [0, 1, 2, 0, 1, 2] and abs(red - 60 * y).max() <= 4
    assert abs(green - 20 * np.arange(6)).max() <= 4  # in the order of their numbers
    listed = (tmp_path / "out" / "train.lst").read_text().splitlines()
    assert listed[1] == "1\t0.000000\tn01440764/n01440764_10.JPEG" and len(listed) == 9


def test_plain_mxnet_reads_what_was_prepared(ilsvrc, tmp_path):
    import mxnet as mx

    prepare.prepare_imagenet(ilsvrc, tmp_path / "out", Encoding(32), SUBSET)
    plain = mx.io.ImageRecordIter(
        path_imgrec=str(tmp_path / "out/val.rec"),
        path_imgidx=str(tmp_path / "out/val.idx"),
        batch_size=6,
        data_shape=(3, 32, 32),
        verbose=False,
        preprocess_threads=1,
    )
    batch = next(plain)
    assert batch.label[0].asnumpy().tolist() == [0, 1, 2, 0, 1, 2]
    assert abs(batch.data[0].asnumpy()[:, 0].mean((1, 2)) - [0, 60, 120, 0, 60, 120]).max() <= 4


def test_archives_that_are_not_the_published_ones(ilsvrc, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def made(**keys):
        return prepare.prepare_imagenet(ilsvrc, out, RAW, **keys)

    message = mistake(made)
    assert message.startswith(f"{ilsvrc / prepare.TRAIN_TAR}: ")
    assert "the published archive has 147897477120" in message
    monkeypatch.setattr(prepare, "SIZE", {})
    assert f"{prepare.TRAIN_TAR}: MD5 " in mistake(made)
    monkeypatch.setattr(
        prepare, "MD5", {name: hashlib.md5((ilsvrc / name).read_bytes()).hexdigest() for name in prepare.MD5}
    )
    assert "holds 3 classes, but 1000 are expected; get the complete archive, or give --expect-classes 3" in mistake(
        made
    )
    assert "holds 9 images, but 8 are expected;" in mistake(made, expected=Expected(3, 8, 6))
    assert "give --expect-val 6" in mistake(made, expected=Expected(3, 9, 7))
    (ilsvrc / prepare.DEVKIT).unlink()
    assert "does not exist; download it from image-net.org (account needed), or give --ground-truth" in mistake(made)


@pytest.mark.parametrize(
    "member, content, part",
    [
        ("../n01440764.tar", b"", "leads out of its folder"),
        ("readme.txt", b"", "no tar of a class"),
        ("n01440764.tar", b"junk" * 300, "n01440764.tar: not a complete tar"),
        (
            "n01440764.tar",
            packed(**{"../n01440764_1.JPEG": b"a"}),
            "n01440764.tar: member '../n01440764_1.JPEG' leads out",
        ),
        ("n01440764.tar", packed(**{"n02085620_1.JPEG": b"a"}), "holds n02085620_1.JPEG"),
        ("n01440764.tar", packed(), "holds no images"),
    ],
)
def test_a_training_archive_of_another_form(ilsvrc, tmp_path, member, content, part):
    (ilsvrc / prepare.TRAIN_TAR).write_bytes(packed(**{member: content}))
    assert part in mistake(prepare.prepare_imagenet, ilsvrc, tmp_path / "out", RAW, Expected(1, 1, 6))
    assert not list((tmp_path / "out").glob("*.rec"))


def test_validation_images_of_another_form(ilsvrc, tmp_path):
    def said(truth, **files) -> str:
        (ilsvrc / prepare.VAL_TAR).write_bytes(packed(**files))
        (ilsvrc / "truth.txt").write_text(truth)
        return mistake(prepare.prepare_imagenet, ilsvrc, tmp_path / "out", RAW, Expected(3, 9, 1), ilsvrc / "truth.txt")

    assert "no validation image" in said("n01440764\n", **{"cat.JPEG": b"a"})
    first = {"ILSVRC2012_val_00000001.JPEG": b"a"}
    assert "truth.txt, line 1: must be the class" in said("1\n", **first)
    assert "class n99999999, which has no training images" in said("n99999999\n", **first)
    assert "the ground truth covers 1 images" in said("n01440764\n", **{"ILSVRC2012_val_00000002.JPEG": b"a"})


def test_a_devkit_that_is_none(ilsvrc, tmp_path):
    (ilsvrc / prepare.DEVKIT).write_bytes(b"junk")
    assert "cannot be understood" in mistake(prepare.prepare_imagenet, ilsvrc, tmp_path / "out", RAW, SUBSET)


MAT_5 = savemat_bytes(True)


@pytest.mark.parametrize(
    "meta, part",
    [
        (b"", "MatReadError"),
        (MAT_5[:200] + bytes([MAT_5[200] ^ 1]) + MAT_5[201:], "(error: "),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(99), "NotImplementedError"),
        (savemat_bytes(False), "KeyError: 'synsets'"),
        (bytes(2**26 + 1), "67,108,865 bytes, more than"),
    ],
    ids=["empty", "a flipped byte", "version 7.3", "another table", "too long"],
)
def test_tables_of_classes_that_cannot_be_read(tmp_path, meta, part):
    with tarfile.open(tmp_path / "devkit.tar.gz", "w:gz", compresslevel=1) as tar:
        add(tar, "meta.mat", meta)
        add(tar, "ILSVRC2012_validation_ground_truth.txt", b"1\n")
    message = mistake(prepare._devkit_truth, tmp_path / "devkit.tar.gz")
    assert "devkit.tar.gz: cannot be understood" in message and part in message


# Going on


def numbered(n) -> prepare.Labelled:
    class Numbered:
        def name(self, row):
            return f"image {row}"

        def read(self, row):
            return b"broken" if row == 5 else photo(row % 2, row % 10)

    return prepare.Labelled(Numbered(), [f"c/{row}" for row in range(n)], [row % 2 for row in range(n)])


def test_a_file_grows_on_from_any_place_where_it_was_cut_off(tmp_path, monkeypatch):
    whole, problems = prepare.write_records(tmp_path / "a.rec", numbered(12), RAW, skip=True)
    assert whole == 11 and len(problems) == 1 and problems[0].startswith("image 5: not an image")
    rec, idx, lst = ((tmp_path / f"a.{end}").read_bytes() for end in ("rec", "idx", "lst"))
    made = []
    encoded = prepare.encoded
    monkeypatch.setattr(prepare, "encoded", lambda *how: made.append(how[1]) or encoded(*how))
    for n_rec, n_idx in (
        (len(rec), len(idx)),
        (len(rec) - 3, len(idx)),
        (len(rec), len(idx) - 2),
        (3000, len(idx)),
        (len(rec), 9),
        (0, 0),
        (20, 3),
    ):
        for end in ("rec", "idx", "lst"):
            (tmp_path / f"a.{end}").unlink()
        (tmp_path / ".begun-a.rec").write_bytes(rec[:n_rec])
        (tmp_path / ".begun-a.idx").write_bytes(idx[:n_idx])
        made.clear()
        again, found = prepare.write_records(tmp_path / "a.rec", numbered(12), RAW, skip=True)
        assert (again, found) == (whole, problems)
        assert [(tmp_path / f"a.{end}").read_bytes() for end in ("rec", "idx", "lst")] == [rec, idx, lst]
        assert not list(tmp_path.glob(".*")) and (len(made) == 12) == (n_rec < 100)
    made.clear()
    assert prepare.write_records(tmp_path / "a.rec", numbered(12), RAW, skip=True)[0] == whole and not made


def test_a_bad_image_stops_and_what_was_written_stays(tmp_path):
    with pytest.raises(sources.BadImage, match="^image 5: not an image"):
        prepare.write_records(tmp_path / "a.rec", numbered(12), RAW)
    assert len((tmp_path / ".begun-a.idx").read_text().splitlines()) == 5 and not (tmp_path / "a.rec").exists()


@pytest.mark.slow
def test_a_killed_script_goes_on(tmp_path):
    """SIGKILL in the middle of a few hundred images; then the same command gives what an undisturbed one gives."""
    for split, n in (("train", 300), ("val", 2)):
        for name in "ab":
            (tmp_path / "in" / split / name).mkdir(parents=True)
            for k in range(n):
                (tmp_path / "in" / split / name / f"{k}.jpg").write_bytes(photo(ord(name) % 2, k % 10))

    def command(out):
        return subprocess.Popen(
            [
                sys.executable,
                str(REPO / "scripts/prepare.py"),
                "folder",
                "--root",
                str(tmp_path / "in"),
                "--out",
                str(tmp_path / out),
                "--resize",
                "20",
                "--workers",
                "1",
            ],
            cwd=REPO,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )

    killed = command("killed")
    partial = tmp_path / "killed/.begun-train.idx"
    while killed.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert partial.exists(), "killed too late to test anything"
    outputs = [command(out).communicate() for out in ("killed", "whole")]
    reports = [json.loads(out) for out, _ in outputs]
    assert reports[0] == reports[1] and reports[0]["images"] == {"train": 600, "val": 4}
    for name in ("train.rec", "train.idx", "train.lst", "val.rec", "classes.txt", "prepared.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# Class folders


@pytest.fixture
def folders(tmp_path):
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "in" / split / name).mkdir(parents=True)
            for k in range(3):
                (tmp_path / "in" / split / name / f"{k}.jpg").write_bytes(photo(label, k))
    return tmp_path / "in"


def test_class_folders_as_records_are_the_same_data(folders, tmp_path):
    done = prepare.prepare_folder(folders, tmp_path / "out", RAW)
    assert done["images"] == {"train": 6, "test": 6}
    assert prepare.prepare_folder(folders, tmp_path / "out", RAW) == done  # nothing to do
    ours, theirs = (
        data.load(data.options(name="folder", root=str(root), input=(3, 16, 16)))
        for root in (folders, tmp_path / "out")
    )
    assert ours.classes == theirs.classes
    for (x, y, _), (u, v, _) in zip(ours.test.batches(4), theirs.test.batches(4)):
        assert np.array_equal(x, u) and np.array_equal(y, v)


def test_folders_below_one_whose_name_is_not_utf_8(folders, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff")
    folders.rename(odd)
    (odd / "train" / "cat" / "bad.jpg").write_bytes(b"junk")
    done = [prepare.prepare_folder(odd, tmp_path / "out", prepare.Encoding(), skip=True) for _ in range(2)]
    assert done[0] == done[1] and done[0]["images"] == {"train": 6, "test": 6} and "bad.jpg" in done[0]["skipped"][0]


def test_other_options_need_another_folder(folders, tmp_path):
    prepare.prepare_folder(folders, tmp_path / "out", RAW)
    assert "made from different files or with different options" in mistake(
        prepare.prepare_folder, folders, tmp_path / "out", Encoding(30)
    )
    (folders / "train/cat/9.jpg").write_bytes(photo(0, 9))
    assert "made from different files" in mistake(prepare.prepare_folder, folders, tmp_path / "out", RAW)
    assert "the same as --root" in mistake(prepare.prepare_folder, folders, folders, RAW)


def test_folders_with_a_bad_image_and_of_other_classes(folders, tmp_path):
    (folders / "train/cat/1.jpg").write_bytes(photo(0, 1)[:-9])
    assert mistake(prepare.prepare_folder, folders, tmp_path / "a", RAW).startswith(
        f"{folders / 'train/cat/1.jpg'}: truncated image"
    )
    done = prepare.prepare_folder(folders, tmp_path / "b", RAW, skip=True)
    assert done["images"]["train"] == 5 and "train/cat/1.jpg: truncated image" in done["skipped"][0]
    (folders / "test/dog").rename(folders / "test/emu")
    assert "no such class folder" in mistake(prepare.prepare_folder, folders, tmp_path / "c", RAW)


# What is written is read, or refused before anything is written


@pytest.mark.parametrize("name", [" ", "a\tb", "a\nb", "a\rb", "caf\udce9"])
def test_class_names_that_a_list_cannot_hold(folders, tmp_path, name):
    for split in ("train", "test"):
        (folders / split / "cat").rename(folders / split / name)
    assert "rename it" in mistake(prepare.prepare_folder, folders, tmp_path / "out", RAW)
    assert not list((tmp_path / "out").glob("*.rec"))


@pytest.mark.parametrize("name", ["a b", "a\x85b", "a\u2028b", "ü", "a,b", '"a"'])
def test_odd_class_names_are_read_again(folders, tmp_path, name):
    for split in ("train", "test"):
        (folders / split / "cat").rename(folders / split / name)
        (folders / split / name / "0.jpg").rename(folders / split / name / f"{name}.jpg")
    prepare.prepare_folder(folders, tmp_path / "out", RAW)
    found = data.load(data.options(name="folder", root=str(tmp_path / "out"), input=(3, 16, 16)))
    assert sorted(found.classes) == sorted((name, "dog"))


def test_a_class_that_only_one_side_has_images_of(ilsvrc, tmp_path):
    (ilsvrc / "truth.txt").write_text(f"{WNIDS[0]}\n{WNIDS[1]}\n" * 3)
    args = ilsvrc, tmp_path / "out", RAW, SUBSET, ilsvrc / "truth.txt"
    assert f"val.rec: holds no image of class 2 ({WNIDS[2]})" in mistake(prepare.prepare_imagenet, *args)
    assert not list((tmp_path / "out").glob("*.rec"))


def test_a_class_that_loses_all_images_by_skipping(folders, tmp_path):
    for path in (folders / "test/dog").iterdir():
        path.write_bytes(b"junk")
    for _ in range(2):  # the second run finds the files of the first
        assert "test.rec: holds no image of class 1 (dog)" in mistake(
            prepare.prepare_folder, folders, tmp_path / "out", RAW, skip=True
        )
    assert not (tmp_path / "out" / prepare.PREPARED).exists()


def test_a_single_training_image(folders, tmp_path):
    shutil.rmtree(folders / "train/dog")
    shutil.rmtree(folders / "test/dog")
    for k in (1, 2):
        (folders / f"train/cat/{k}.jpg").unlink()
    assert "a single training image" in mistake(prepare.prepare_folder, folders, tmp_path / "out", RAW)


@pytest.mark.parametrize("name", ["train.rec", "test.rec", "train"])
def test_files_of_other_origin_are_not_taken_for_our_own(folders, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    assert f"{name}: already exists" in mistake(prepare.prepare_folder, folders, tmp_path / "out", RAW)


def test_what_was_prepared_and_removed_is_made_again(folders, tmp_path):
    done = prepare.prepare_folder(folders, tmp_path / "out", RAW)
    (tmp_path / "out/train.rec").unlink()
    assert prepare.prepare_folder(folders, tmp_path / "out", RAW) == done and (tmp_path / "out/train.rec").exists()
    (tmp_path / "out" / prepare.PREPARED).write_text('{"job": 5}')
    assert "prepared.json: job: 5" in mistake(prepare.prepare_folder, folders, tmp_path / "out", RAW)


def test_images_that_cannot_be_stored(monkeypatch):
    wide = cv2.imencode(".png", np.zeros((2, 66000, 3), np.uint8))[1].tobytes()
    with pytest.raises(sources.BadImage, match="66000x2 pixels, more than JPEG can hold"):
        prepare.encoded(wide, "a", Encoding(480))
    monkeypatch.setattr(sources, "MAX_PIECE", 100)
    with pytest.raises(sources.BadImage, match="more than a record can hold"):
        prepare.encoded(jpeg(smooth(90, 120)), "a", RAW)


@pytest.mark.slow
def test_two_preparations_of_one_folder_wait_for_each_other(folders, tmp_path):
    command = [
        *(sys.executable, str(REPO / "scripts/prepare.py"), "folder", "--root", str(folders), "--raw"),
        *("--out", str(tmp_path / "out")),
    ]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPO)}) for _ in "ab"
    ]
    first, second = (json.loads(process.communicate()[0]) for process in both)
    assert first == second and first["images"] == {"train": 6, "test": 6}
    assert len(images_of(tmp_path / "out/train.rec")) == 6


def images_of(path) -> list[bytes]:
    records = sources.Records(path)
    return [records.read(row) for row in range(len(records))]


# Caltech-256

CALTECH = {
    "256_ObjectCategories/001.ak47/001_0001.jpg": b"a",
    "256_ObjectCategories/001.ak47/RENAME2": b"script",
    "256_ObjectCategories/257.clutter/257_0001.jpg": b"bc",
}


def test_caltech_is_unpacked_and_gone_on_with(tmp_path, monkeypatch):
    (tmp_path / "c.tar").write_bytes(packed(**CALTECH))
    out = tmp_path / "out"
    assert prepare.unpack_caltech(tmp_path / "c.tar", out, 2)["classes"] == 2
    assert {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != "lock"
    } == CALTECH
    (out / "256_ObjectCategories/257.clutter/257_0001.jpg").write_bytes(b"b")  # half of it
    written = []
    monkeypatch.setattr(prepare, "replacing", lambda path, real=prepare.replacing: written.append(path) or real(path))
    prepare.unpack_caltech(tmp_path / "c.tar", out, 2)
    assert written == [out / "256_ObjectCategories/257.clutter/257_0001.jpg"] and written[0].read_bytes() == b"bc"
    (out / "256_ObjectCategories/002.other").mkdir()
    (out / "256_ObjectCategories/002.other/1.jpg").write_bytes(b"a")
    assert "also holds images that are not in" in mistake(prepare.unpack_caltech, tmp_path / "c.tar", out, 2)
    assert "holds 2 images, but 30607 are expected" in mistake(prepare.unpack_caltech, tmp_path / "c.tar", out)


def test_nothing_is_unpacked_outside(tmp_path):
    (tmp_path / "c.tar").write_bytes(packed(**{**CALTECH, "256_ObjectCategories/../../x.jpg": b"a"}))
    assert "leads out" in mistake(prepare.unpack_caltech, tmp_path / "c.tar", tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()
    (tmp_path / "c.tar").write_bytes(packed(**CALTECH))
    (tmp_path / "out/256_ObjectCategories").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/256_ObjectCategories/001.ak47").symlink_to(tmp_path / "elsewhere")
    assert "a link there leads out" in mistake(prepare.unpack_caltech, tmp_path / "c.tar", tmp_path / "out", 2)
    assert not list((tmp_path / "elsewhere").iterdir())
