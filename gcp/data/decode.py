"""Encoded images to arrays: decoding in parallel threads, detecting broken images, GluonCV's ImageNet augmentation.

MXNet's `ImageRecordIter` is not used: its augmentation depends on the number of threads, it cannot start in the middle
of a pass, and a broken image ends it without being named. Grey, CMYK and 16-bit images become 8-bit RGB; alpha is
dropped.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Deque, Iterable, Iterator, Optional, Tuple, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from gcp.data.sources import BadImage, Source
from gcp.runtime import physical_cores

# Images are decoded in parallel, so threads that OpenCV starts for a single image would only get in the way.
cv2.setNumThreads(1)

_LONGEST = 64  # a resized image's sides, over those of the network's input; what is beyond is cut off before resizing

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int) -> Iterator[Result]:
    """`function` of every item, in order, from `workers` threads that run at most `ahead` items before the consumer.

    An error is raised when its item's turn comes. Closing the generator leaves no thread behind.
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


def progress(items: Optional[Iterable[Item]], what: str, total: int, unit: str = "img", initial: int = 0) -> tqdm:
    """A progress bar on stderr over the items, or one to be advanced by hand if `items` is None."""
    return tqdm(
        items,
        desc=what,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        initial=initial,
        file=sys.stderr,
        leave=False,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    )


# Decoding


class Pictures:
    """A source's images, used like a uint8 array (n, 3, H, W): indexing with rows decodes them, in `workers` threads.

    Images are resized until the short side is 8/7 of the input's (256 for 224), and the centre is cut out. 0 workers:
    one per physical core.
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
        """One image, uint8 RGB (3, H, W). Raises BadImage if it cannot be decoded."""
        name = self.source.name(row)
        image = decoded(self.source.read(row), name)
        height, width = self.shape[1:]
        scale = 8 / 7 * max(height / image.shape[0], width / image.shape[1])
        # So that a few bytes, a line of 60,000 pixels, cannot ask for gigabytes; ordinary images stay whole.
        image = _centre(image, math.ceil(_LONGEST * height / scale), math.ceil(_LONGEST * width / scale))
        size = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
        with _legible(name):
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        return _centre(image, height, width)[..., ::-1].transpose(2, 0, 1)

    def varied(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """One image with the ImageNet recipe's random changes, made from the whole image: uint8 RGB (3, H, W).

        Raises BadImage if it cannot be decoded.
        """
        content, name = self.source.read(row), self.source.name(row)
        found = jpeg_shape(content)
        if found is None:
            return self._varied_whole(decoded(content, name), rng)
        top, left, height, width = crop_box(*found[:2], rng)
        # libjpeg can halve an image as it decodes: this is less work, and averages where picking pixels would alias.
        by = next((by for by in (8, 4, 2) if height >= by * self.shape[1] and width >= by * self.shape[2]), 1)
        image = decoded(content, name, REDUCED[by])
        if image.shape[:2] != tuple(-(-side // by) for side in found[:2]):  # OpenCV found a rotation behind the header
            return self._varied_whole(decoded(content, name), rng)
        return varied(image, (top // by, left // by, height // by, width // by), self.shape[1:], rng)

    def _varied_whole(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return varied(image, crop_box(*image.shape[:2], rng), self.shape[1:], rng)

    def problem(self, row: int) -> Optional[str]:
        """What is wrong with an image, beginning with the image's name; None if it can be decoded."""
        try:
            check(self.source.read(row), self.source.name(row))
        except BadImage as error:
            return str(error)
        return None


class Decoded:
    """Some rows of a source in memory, used like a uint8 array (n, c, H, W) of all rows; the others take no memory.

    Raises IndexError for a row that is not among them.
    """

    def __init__(self, n: int, rows: np.ndarray, shape: Tuple[int, int, int]) -> None:
        self.shape = (n, *shape)
        self._pixels = np.zeros((len(rows), *shape), np.uint8)
        self._places = np.full(n, len(rows))
        self._places[rows] = np.arange(len(rows))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self._pixels[self._places[rows]]

    def __setitem__(self, rows: np.ndarray, images: np.ndarray) -> None:
        self._pixels[self._places[rows]] = images


REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decoded(content: bytes, name: str, how: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """An encoded image as uint8 BGR (height, width, 3). Raises BadImage if it is not an image, or is incomplete."""
    if is_truncated(content):  # OpenCV would fill the missing part with grey and say nothing
        raise BadImage(f"{name}: truncated image; replace or remove it")
    with _legible(name):
        image = cv2.imdecode(np.frombuffer(content, np.uint8), how) if content else None
    if image is None:
        raise BadImage(f"{name}: not an image that OpenCV can decode; replace or remove it")
    return image


@contextlib.contextmanager
def _legible(name: str) -> Iterator[None]:
    """Turn what OpenCV and NumPy raise for an image that is too large into BadImage."""
    try:
        yield
    except (cv2.error, MemoryError) as error:
        why = getattr(error, "err", None) or "out of memory"
        raise BadImage(f"{name}: image too large to be decoded or resized ({why}); replace or remove it") from None


def _centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The centre of an image (h, w, 3), at most `height` x `width` of it."""
    top, left = max(0, image.shape[0] - height) // 2, max(0, image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def check(content: bytes, name: str) -> None:
    """Raise BadImage unless the image can be decoded; tried at an eighth of its size, in a fraction of the time."""
    decoded(content, name, REDUCED[8])


# Neither an escaped 0xff nor a restart marker nor a fill byte.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END = 0xD9


def _segments(content: bytes) -> Iterator[Tuple[int, int]]:
    """A JPEG's segments in order: the kind, and where its length field is; the end of the image has none.

    It goes from segment to segment, so that the end of an embedded thumbnail is not taken for the image's end.
    """
    position = 2
    while content.startswith(b"\xff\xd8"):
        marker = _JPEG_MARKER.search(content, position)
        if marker is None:
            return
        yield marker.group()[1], marker.end()
        if marker.group()[1] == _JPEG_END or len(content) < marker.end() + 2:
            return
        position = marker.end() + struct.unpack_from(">H", content, marker.end())[0]


def is_truncated(content: bytes) -> bool:
    """Whether a JPEG, PNG or BMP file ends before its own structure does."""
    if content.startswith(b"\xff\xd8"):
        return all(kind != _JPEG_END for kind, _ in _segments(content))
    if content.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" not in content[-1024:]  # the last chunk with its checksum
    if content.startswith(b"BM") and len(content) >= 6:
        return len(content) < struct.unpack_from("<I", content, 2)[0]
    return False


def jpeg_shape(content: bytes) -> Optional[Tuple[int, int, int]]:
    """A JPEG's height, width and channels from its header; None for other files, or if Exif may rotate the image."""
    for kind, place in _segments(content):
        if len(content) < place + 8 or kind == 0xE1 and content[place + 2 : place + 6] == b"Exif":
            return None
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a frame, not tables
            height, width, channels = struct.unpack_from(">HHB", content, place + 3)
            return (height, width, channels) if height and width else None
    return None


# Augmenting


def shifts(n: int, size: Tuple[int, int], mirror: bool, rng: np.random.Generator) -> np.ndarray:
    """What `shifted` does to each of `n` images: int (n, 3) of shift down, shift right, and whether it is mirrored."""
    down, right = _reach(size)
    y, x = rng.integers(0, 2 * down + 1, n), rng.integers(0, 2 * right + 1, n)
    flipped = rng.random(n) < 0.5 if mirror else np.zeros(n, bool)
    return np.stack((y, x, flipped), axis=1)


def shifted(images: np.ndarray, how: np.ndarray) -> np.ndarray:
    """uint8 (n, c, H, W) shifted by up to a 16th of each side, filled with black, and mirrored, as `shifts` says."""
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
    """A random part of an image as (top, left, height, width): 8 to 100 % of its area, aspect ratio 3:4 to 4:3.

    Uniform in the area and in the logarithm of the ratio; after ten draws that do not fit, the largest allowed part in
    the centre.
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
    """The box of a BGR image (h, w, 3) resized, mirrored half of the time, its colours changed: uint8 RGB (3, H, W)."""
    top, left, height, width = box
    image = cv2.resize(image[top : top + height, left : left + width], size[::-1], interpolation=cv2.INTER_LINEAR)
    mirrored = rng.random() < 0.5
    image = cv2.transform(image, _colours(np.array(cv2.mean(image)[2::-1]), rng))
    return (image[:, ::-1] if mirrored else image).transpose(2, 0, 1)


def _colours(mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation in random order, then lighting, as one map (3, 4) from BGR to RGB.

    All four are affine in a pixel's colours, and contrast needs only the image's `mean` (RGB), so they are applied at
    once: values are rounded and clipped to 0 to 255 only at the end, not in between.
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
