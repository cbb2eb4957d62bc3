"""Files that a kill, a full disk or a second process cannot leave half-written: atomic writes, JSON, locks."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import math
import os
from pathlib import Path
from typing import Any, Iterator

from gcp.errors import UserError

# Writing files so that a kill or a full disk leaves the old file or the new one, never half of one


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to; it takes `path`'s place, synced, if the block ends without error.

    The temporary file is in the same folder and keeps the suffix. A failed write leaves `path` as it was.
    UserError: the disk is full, or the folder does not let itself be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".partial-{path.name}")
    try:
        with writing(path):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Write `obj` as JSON, atomically. numpy numbers and arrays become plain ones.

    UserError: as `replacing`. ValueError, naming the place: a number that is not finite (write None instead).
    """
    text = json.dumps(plain(obj, finite=True), indent=1, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; make room or set `output` to "
            "another folder, then run the command again: finished records are kept"
        ) from error


def _sync_folder(folder: Path) -> None:
    # Without this a power cut can undo a rename that the program already counts on.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: Any, *, finite: bool, place: str = "") -> Any:
    """`value` in JSON's own types. Numbers that are not finite: an error if `finite`, else strings."""
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, without importing numpy
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item, finite=finite, place=f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, finite=finite, place=f"{place}[{n}]") for n, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        if finite:
            place = place.lstrip(".") or "the value"
            raise ValueError(f"{place} is {value}; JSON holds finite numbers or None")
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this folder's turn, then have it; the folder is made if need be."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill or a full disk left unfinished: the next one shall start on its own."""
    if not path.exists():
        return
    with writing(path), open(path, "r+b") as file:
        whole = file.read().rpartition(b"\n")
        if whole[2]:
            file.truncate(len(whole[0]) + len(whole[1]))


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def write_text(path: os.PathLike, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)
