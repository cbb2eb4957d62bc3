"""Images: the order that threads give, what is read from where, decoding and its errors, augmentation."""

from __future__ import annotations

import io
import struct
import tarfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gcp.data import decode, sources
from gcp.errors import UserError


def jpeg(image, **options) -> bytes:
    """A picture (PIL's mode by its shape and type, or a PIL image) as a JPEG file's bytes."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "jpeg", quality=95, **options)
    return file.getvalue()


def smooth(height, width) -> np.ndarray:
    """A picture with slow changes, uint8 (height, width, 3): what JPEG keeps."""
    y, x = np.mgrid[:height, :width]
    return np.stack((255 * y / height, 255 * x / width, 128 + 0 * x), axis=2).astype(np.uint8)


# Threads


def test_results_come_in_order_whatever_the_threads_do():
    def slow_when_even(n):
        time.sleep(0.003 * (n % 2 == 0))
        return -n

    for workers in (1, 3):
        assert list(decode.in_order(slow_when_even, range(20), workers, 5)) == [-n for n in range(20)]


def test_threads_run_only_so_far_ahead_and_end_with_the_generator():
    begun = []
    results = decode.in_order(lambda n: begun.append(n) or n, range(1000), 2, 5)
    assert next(results) == 0
    results.close()
    assert len(begun) <= 6 and not [t for t in threading.enumerate() if t.name.startswith("images")]


def test_an_error_comes_in_its_turn():
    results = decode.in_order(lambda n: 6 // (3 - n), range(10), 2, 5)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


# Tar


def tar_of(path, **members) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, kind in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "a", 3 * (kind == tarfile.REGTYPE)
            tar.addfile(info, io.BytesIO(b"abc"))
    return path


def test_members_are_read_where_they_lie(tmp_path):
    path = tar_of(tmp_path / "t.tar", **{"d": tarfile.DIRTYPE, "d/a.jpg": tarfile.REGTYPE})
    places = [sources.place_of(m) for m in sources.safe_members(path) if m.isfile()]
    source = sources.Members(path, places)
    assert (len(source), source.name(0), source.read(0), source.size(0)) == (1, f"{path}, member d/a.jpg", b"abc", 3)
    path.write_bytes(path.read_bytes()[:1026])
    with pytest.raises(sources.BadImage, match="ends within it"):
        sources.Members(path, places).read(0)


@pytest.mark.parametrize(
    "name, kind, part",
    [
        ("../a.jpg", tarfile.REGTYPE, "leads out"),
        ("/etc/a.jpg", tarfile.REGTYPE, "leads out"),
        ("d/../../a.jpg", tarfile.REGTYPE, "leads out"),
        ("d\\..\\a.jpg", tarfile.REGTYPE, "leads out"),
        ("a.jpg", tarfile.SYMTYPE, "is a link, a device"),
        ("a.jpg", tarfile.LNKTYPE, "is a link, a device"),
        ("a.jpg", tarfile.CHRTYPE, "is a link, a device"),
        ("a.jpg", tarfile.FIFOTYPE, "is a link, a device"),
        ("a.jpg", tarfile.GNUTYPE_SPARSE, "or a sparse file"),
    ],
)
def test_a_tar_that_is_not_harmless_is_refused(tmp_path, name, kind, part):
    with pytest.raises(UserError, match=part):
        sources.safe_members(tar_of(tmp_path / "t.tar", **{name: kind}))


def test_what_is_no_tar(tmp_path):
    path = tmp_path / "t.tar"
    with pytest.raises(UserError, match="No such file"):
        sources.safe_members(path)
    path.write_bytes(b"not a tar" * 100)
    with pytest.raises(UserError, match="not an uncompressed tar"):
        sources.safe_members(path)
    whole = tar_of(path, a=tarfile.REGTYPE, b=tarfile.REGTYPE).read_bytes()
    for n in (512 + 512 + 512 + 1, 512 + 512 + 100, 512 + 1):  # within the second's data, its header, the first's data
        path.write_bytes(whole[:n])
        with pytest.raises(UserError, match="not a complete one"):
            sources.safe_members(path)


# Class folders


def test_files_that_are_no_images_are_left_out():
    found = {"b": ["2.JPEG", "1.jpg", ".hidden.jpg", "RENAME2", "notes.txt"], "a": ["x.bmp"]}
    assert sources.classes_of(found, "root") == {"a": ["a/x.bmp"], "b": ["b/1.jpg", "b/2.JPEG"]}


@pytest.mark.parametrize(
    "found, part",
    [
        ({}, "^root: holds no class folders"),
        ({"a": ["notes.txt"]}, "^root/a: class folder without images"),
        ({"Cat": ["1.jpg"], "cat": ["1.jpg"]}, "^root/cat: the same class as Cat"),
        ({"a": ["1.jpg", "1.png"]}, "^root/a/1.png: the same name as 1.jpg"),
        ({"a": ["1.jpg", "1.JPG"]}, "the same name as 1.JPG"),
    ],
)
def test_class_folders_that_cannot_be_meant(found, part):
    with pytest.raises(UserError, match=part):
        sources.classes_of(found, "root")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()

    def refused(folder, scandir=sources.os.scandir):  # chmod would not stop root
        if Path(folder).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(sources.os, "scandir", refused)
    with pytest.raises(UserError, match=f"^{tmp_path / 'a'}: folder cannot be read: Permission denied"):
        sources.class_folders(tmp_path)


# RecordIO


def write_records(path, contents, labels=None) -> None:
    from mxnet import recordio  # MXNet's own writer

    record = recordio.MXIndexedRecordIO(str(path.with_suffix(".idx")), str(path), "w")
    for key, content in enumerate(contents):
        label = labels[key] if labels is not None else key % 2
        record.write_idx(key + 10, recordio.pack(recordio.IRHeader(0, label, key, 0), content))
    record.close()


# The last but one hold RecordIO's own mark, where the format splits a record, and where it does not.
CONTENTS = (b"", b"a", b"abcd", b"x" * 1001, b"ab" + sources.MAGIC, sources.MAGIC * 3 + b"z", b"last")


def test_records_are_what_mxnet_wrote(tmp_path):
    write_records(tmp_path / "t.rec", CONTENTS)
    source = sources.Records(tmp_path / "t.rec")
    assert tuple(source.read(row) for row in range(len(source))) == CONTENTS
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert source.name(3) == f"{tmp_path / 't.rec'}, record 13"
    assert source.size(6) == 8 + 24 + 4


def test_a_list_names_records_and_must_agree(tmp_path):
    write_records(tmp_path / "t.rec", CONTENTS[:2])
    path = tmp_path / "t.lst"
    path.write_text("10\t0.000000\tcat/a.jpg\n11\t1.000000\tdog/b.jpg\n")
    source = sources.Records(tmp_path / "t.rec")
    assert source.name(1) == f"{tmp_path / 't.rec'}, record 11 (dog/b.jpg)" and source.read(1) == b"a"
    path.write_text("10\t0\tcat/a.jpg\n11\t0\tdog/b.jpg\n")
    with pytest.raises(UserError, match=r"record 11 \(dog/b.jpg\): its label is not the 0 in t.lst"):
        sources.Records(tmp_path / "t.rec").read(1)
    for text, part in (
        ("10\t0\ta\n", "lists 1 images, but t.rec holds 2"),
        ("10\t0\ta\n12\t0\tb\n", "or different ones"),
        ("10 0 a\n", "line 1: must be number, label, name"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=part):
            sources.Records(tmp_path / "t.rec")


@pytest.mark.parametrize("label", [0.5, -1, float("nan")])
def test_a_label_that_is_no_class(tmp_path, label):
    write_records(tmp_path / "t.rec", [b"a"], [label])
    with pytest.raises(UserError, match=r"record 10: the label .* is not a class number"):
        sources.Records(tmp_path / "t.rec")


def test_damaged_records_and_indices(tmp_path):
    path, index = tmp_path / "t.rec", tmp_path / "t.idx"
    write_records(path, CONTENTS)
    whole, lines = path.read_bytes(), index.read_text()

    def mistake() -> str:
        with pytest.raises(UserError) as caught:
            sources.Records(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path.write_bytes(whole[:-2])
    assert mistake().startswith(f"{path}, record 16: truncated record")
    path.write_bytes(whole[:40])
    assert "not the index of t.rec, or that file is truncated" in mistake()
    path.write_bytes(whole)
    index.write_text("".join(line + "\n" for line in lines.splitlines()[:-1]))
    assert mistake().startswith(f"{index}: truncated: t.rec continues after its last record")
    index.write_text(lines[:-2])  # the last offset without its last digit
    assert str(index) in mistake() or str(path) in mistake()
    index.write_text("10\t0\n10\t36\n")
    assert "a record number twice" in mistake()
    for text, part in (("", "empty or truncated"), ("10\t0\n11\n", "empty or truncated"), ("a\tb\n", "not an index")):
        index.write_text(text)
        assert part in mistake()
    index.unlink()
    assert mistake().startswith(f"{index}: does not exist, but t.rec does") and "rec2idx.py" in mistake()


def test_damage_within_the_file_is_found_when_it_is_read(tmp_path):
    write_records(tmp_path / "t.rec", CONTENTS)
    (tmp_path / "t.lst").write_text("".join(f"{k + 10}\t{k % 2}\tx{k}\n" for k in range(len(CONTENTS))))
    content = bytearray((tmp_path / "t.rec").read_bytes())
    content[sources.Records(tmp_path / "t.rec")._offsets[2]] ^= 0xFF
    (tmp_path / "t.rec").write_bytes(content)
    source = sources.Records(tmp_path / "t.rec")
    assert source.read(1) == b"a" and source.read(3) == CONTENTS[3]
    with pytest.raises(sources.BadImage, match=r"record 12 \(x2\): no complete record at byte 68"):
        source.read(2)


def test_class_names(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("cat\nice cream\n")
    assert sources.read_classes(path) == ("cat", "ice cream")
    for text, part in (("a\n\nb\n", "line 2: no class name"), ("a\nb\na\n", "line 3: a class twice: a"), ("", "empty")):
        path.write_text(text)
        with pytest.raises(UserError, match=part):
            sources.read_classes(path)


# Decoding


def picture(tmp_path, content, shape=(3, 40, 40)) -> np.ndarray:
    (tmp_path / "picture").write_bytes(content)
    return decode.Pictures(sources.Files(tmp_path, ["picture"]), shape).image(0)


def test_an_image_is_rgb_resized_by_its_short_side_and_cut_in_the_middle(tmp_path):
    image = np.zeros((80, 200, 3), np.uint8)  # OpenCV writes blue, green, red
    image[:, 60:140, 2] = 255  # the middle square is red,
    image[:, :60, 0] = image[:, 140:, 0] = 255  # the sides are blue
    cv2.imwrite(str(tmp_path / "a.png"), image)

    def read(*shape):
        return decode.Pictures(sources.Files(tmp_path, ["a.png"]), shape).image(0)

    pixels = read(3, 40, 40)
    assert pixels.shape == (3, 40, 40) and pixels.dtype == np.uint8
    assert (pixels[0] == 255).all() and (pixels[1:] == 0).all()
    assert read(3, 7, 90).shape == (3, 7, 90)
    assert read(3, 300, 300).shape == (3, 300, 300)


def test_rows_that_are_not_in_use_take_no_memory():
    """All rows together would take three terabytes."""
    images = decode.Decoded(10**6, np.array([70, 3]), (3, 1000, 1000))
    images[3], images[70] = 1, 2
    assert images[np.array([3, 70, 3])][:, 0, 0, 0].tolist() == [1, 2, 1] and images.shape == (10**6, 3, 1000, 1000)
    with pytest.raises(IndexError):
        images[np.array([4])]


@pytest.mark.parametrize("height, width", [(80, 200), (31, 29), (3, 120), (500, 11), (64, 64 * 40)])
def test_cutting_an_image_before_it_is_resized_changes_no_ordinary_image(tmp_path, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    scale = 8 / 7 * max(40 / height, 32 / width)
    size = max(32, round(width * scale)), max(40, round(height * scale))
    whole = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (len(whole) - 40) // 2, (whole.shape[1] - 32) // 2
    expected = whole[top : top + 40, left : left + 32, ::-1].transpose(2, 0, 1)
    assert np.array_equal(picture(tmp_path, cv2.imencode(".png", image)[1].tobytes(), (3, 40, 32)), expected)


def test_a_line_of_pixels_takes_little_memory(tmp_path, monkeypatch):
    """Resized as a whole, 254 bytes would take 11.8 GB."""
    resize, sizes = cv2.resize, []
    monkeypatch.setattr(cv2, "resize", lambda image, size, **how: sizes.append(size) or resize(image, size, **how))
    for shape in ((1, 60000, 3), (60000, 1, 3)):
        line = np.zeros(shape, np.uint8)
        line.reshape(-1, 3)[29_990:30_010] = 200  # in the middle
        pixels = picture(tmp_path, cv2.imencode(".png", line)[1].tobytes(), (3, 224, 224))
        assert pixels.shape == (3, 224, 224) and (pixels == 200).all()
    assert max(width * height for width, height in sizes) < 100 * 224 * 224


@pytest.mark.parametrize("error", [cv2.error("Failed to allocate"), MemoryError()])
def test_an_image_too_large_to_be_resized_is_named(tmp_path, monkeypatch, error):
    def resize(*args, **options):
        raise error

    monkeypatch.setattr(cv2, "resize", resize)
    with pytest.raises(sources.BadImage, match=f"^{tmp_path}/picture: image too large"):
        picture(tmp_path, jpeg(smooth(50, 60)))


@pytest.mark.parametrize(
    "suffix, options",
    [
        (".jpg", []),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".jpg", [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
        (".png", []),
        (".bmp", []),
    ],
)
def test_every_truncation_of_an_image_is_seen(suffix, options):
    image = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)
    content = cv2.imencode(suffix, image, options)[1].tobytes()
    assert not decode.is_truncated(content)
    assert not decode.is_truncated(content + b"\0" * 8)  # what some cameras append
    for n in range(8, len(content)):
        assert decode.is_truncated(content[:n]), n


def test_a_thumbnail_does_not_hide_that_the_image_is_truncated():
    content = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    whole = content[:2] + segment + content[2:]
    assert not decode.is_truncated(whole) and decode.is_truncated(whole[:-2])


def test_grey_cmyk_16_bit_and_transparent_images_are_rgb(tmp_path):
    rgb = np.zeros((60, 60, 3), np.uint8) + np.array((200, 100, 50), np.uint8)
    expected = rgb[:40, :40].transpose(2, 0, 1).astype(int)
    assert abs(picture(tmp_path, jpeg(rgb)) - expected).max() <= 3
    assert abs(picture(tmp_path, jpeg(Image.fromarray(rgb).convert("CMYK"))) - expected).max() <= 6
    grey = picture(tmp_path, jpeg(rgb[..., 0]))
    assert grey.shape == (3, 40, 40) and (grey == 200).all()
    deep = cv2.imencode(".png", rgb[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert (picture(tmp_path, deep) == expected).all()
    clear = cv2.imencode(".png", np.dstack((rgb[..., ::-1], np.full((60, 60), 7, np.uint8))))[1].tobytes()
    assert (picture(tmp_path, clear) == expected).all()


@pytest.mark.parametrize(
    "damage, part",
    [
        (lambda content: content[: len(content) // 2], "truncated image"),
        (lambda content: b"", "not an image"),
        (lambda content: b"<html>not found</html>", "not an image that OpenCV can decode"),
    ],
)
def test_a_bad_image_is_named_and_a_check_finds_it(tmp_path, damage, part):
    (tmp_path / "a.jpg").write_bytes(damage(jpeg(smooth(50, 60))))
    pictures = decode.Pictures(sources.Files(tmp_path, ["a.jpg", "b.jpg", "c.jpg"]), (3, 32, 32))
    (tmp_path / "c.jpg").write_bytes(jpeg(smooth(50, 60)))
    with pytest.raises(sources.BadImage, match=f"^{tmp_path}/a.jpg: {part}"):
        pictures.image(0)
    with pytest.raises(sources.BadImage, match=f"^{tmp_path}/a.jpg: {part}"):
        pictures.varied(0, np.random.default_rng(0))
    assert pictures.problem(0).startswith(f"{tmp_path}/a.jpg: {part}")
    assert pictures.problem(1).startswith(f"{tmp_path}/b.jpg: image cannot be read: No such file")
    assert pictures.problem(2) is None


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_the_size_in_a_jpegs_header(options):
    assert decode.jpeg_shape(jpeg(smooth(30, 50), **options)) == (30, 50, 3)
    assert decode.jpeg_shape(jpeg(smooth(30, 50)[..., 0], **options)) == (30, 50, 1)
    turned = Image.Exif()
    turned[0x112] = 6  # what a camera held upright writes: width is height
    assert decode.jpeg_shape(jpeg(smooth(30, 50), exif=turned, **options)) is None
    assert decode.jpeg_shape(cv2.imencode(".png", smooth(30, 50))[1].tobytes()) is None
    content = jpeg(smooth(30, 50), **options)
    for n in range(0, len(content), 7):
        assert decode.jpeg_shape(content[:n]) in (None, (30, 50, 3))


# Augmentation


@pytest.mark.parametrize("side, shift", [(32, 2), (8, 1)])
def test_crop_shifts_by_a_sixteenth_and_moves_black_in(side, shift):
    numbered = np.arange(1, side * side + 1).reshape(1, 1, side, side).astype(np.uint16)
    batch = np.repeat(numbered, 400, axis=0)
    moves = decode.shifts(400, (side, side), False, np.random.default_rng(0))
    shifted = decode.shifted(batch, moves)
    padded = np.pad(numbered[0, 0], shift)
    shifts = range(2 * shift + 1)
    every = {padded[y : y + side, x : x + side].tobytes() for y in shifts for x in shifts}
    assert {image[0].tobytes() for image in shifted} == every


def test_crop_flip_mirrors_about_half():
    image = np.zeros((1000, 3, 16, 16), np.uint8)
    image[..., :8] = 255
    moves = [decode.shifts(1000, (16, 16), mirror, np.random.default_rng(0)) for mirror in (True, False)]
    left = decode.shifted(image, moves[0])[:, :, 8, 3].astype(bool)
    assert (left == left[:, :1]).all() and 400 < left[:, 0].sum() < 600
    assert decode.shifted(image, moves[1])[:, :, 8, 3].all()


def test_random_parts_have_the_recipes_areas_and_ratios():
    rng = np.random.default_rng(0)
    boxes = np.array([decode.crop_box(375, 500, rng) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (boxes >= 0).all() and (top + height <= 375).all() and (left + width <= 500).all()
    area, ratio = height * width / (375 * 500), width / height
    assert 0.078 < area.min() < 0.09 and area.max() > 0.95  # rounded to pixels
    assert 0.745 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.342
    small = area < 0.4  # these always fit, at any ratio
    assert abs(np.log(ratio[small]).mean()) < 0.02 and abs(area[small].mean() - 0.24) < 0.01
    assert top[small].min() == 0 and (top + height)[small].max() == 375


def test_an_image_too_long_for_any_part_gives_its_middle():
    assert decode.crop_box(10, 1000, np.random.default_rng(0)) == (0, 493, 10, 13)
    assert decode.crop_box(1000, 10, np.random.default_rng(0)) == (493, 0, 13, 10)
    assert decode.crop_box(1, 1, np.random.default_rng(0)) == (0, 0, 1, 1)


def test_colours_are_what_the_recipe_does_step_by_step():
    """Against the four steps one after the other, on floats, pixel by pixel."""
    rgb = np.random.default_rng(1).uniform(80, 160, (7, 9, 3))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        matrix = decode._colours(rgb.mean((0, 1)), np.random.default_rng(seed))
        once = rgb[..., ::-1] @ matrix[:, :3].T + matrix[:, 3]
        factors, steps = rng.uniform(0.6, 1.4, 3), rgb.copy()
        for kind in rng.permutation(3):
            grey = steps @ [0.299, 0.587, 0.114]
            other = (0, grey.mean(), grey[..., None])[kind]  # brightness, contrast, saturation
            steps = factors[kind] * steps + (1 - factors[kind]) * other
        alpha = rng.normal(0, 0.1, 3)
        steps += (decode._EIGENVECTORS * alpha * decode._EIGENVALUES).sum(1)
        assert np.allclose(once, steps)


def test_lighting_has_the_constants_of_mxnet():
    from mxnet import image

    augmenter = next(a for a in image.CreateAugmenter((3, 8, 8), pca_noise=0.1) if type(a).__name__ == "LightingAug")
    assert np.allclose(augmenter.eigval, decode._EIGENVALUES) and np.allclose(augmenter.eigvec, decode._EIGENVECTORS)


def test_a_varied_image_is_a_part_of_the_image_often_mirrored():
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 40:] = 200  # dark left, bright right
    brighter = [decode.varied(image, (0, 0, 60, 80), (24, 32), np.random.default_rng(seed)) for seed in range(200)]
    assert all(x.shape == (3, 24, 32) and x.dtype == np.uint8 for x in brighter)
    mirrored = [x[:, :, :12].mean() > x[:, :, 20:].mean() for x in brighter]
    assert 70 < sum(mirrored) < 130


def test_a_rotation_that_stands_behind_the_size_in_the_header(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # a quarter turn
    content = jpeg(smooth(400, 3), exif=exif)
    start = content.index(b"\xff\xe1")
    segment = content[start : start + 2 + struct.unpack_from(">H", content, start + 2)[0]]
    content = content.replace(segment, b"").replace(b"\xff\xda", segment + b"\xff\xda", 1)
    assert decode.jpeg_shape(content) == (400, 3, 3) and decode.decoded(content, "a").shape == (3, 400, 3)
    (tmp_path / "a.jpg").write_bytes(content)
    pictures = decode.Pictures(sources.Files(tmp_path, ["a.jpg"]), (3, 16, 16))
    for seed in range(20):
        assert pictures.varied(0, np.random.default_rng(seed)).shape == (3, 16, 16)


@pytest.mark.parametrize("side", [64, 700, 1500])
def test_halving_while_decoding_gives_the_same_part(tmp_path, side):
    """A large JPEG decoded at a half or a quarter, against all of it decoded: the same box, mirroring and colours."""
    (tmp_path / "a.jpg").write_bytes(jpeg(smooth(side, side)))
    pictures = decode.Pictures(sources.Files(tmp_path, ["a.jpg"]), (3, 64, 64))
    whole = decode.decoded((tmp_path / "a.jpg").read_bytes(), "a")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        slow = decode.varied(whole, decode.crop_box(side, side, rng), (64, 64), rng)
        fast = pictures.varied(0, np.random.default_rng(seed))
        apart = abs(slow.astype(int) - fast)
        assert apart.max() <= 8 and apart.mean() < 2  # the JPEG's own noise; another box or colour is far off
