"""A fingerprint of this package's source, which machines compare before they share the runs of a sweep."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import gcp

ROOT = Path(gcp.__file__).resolve().parent


@functools.lru_cache(maxsize=None)
def fingerprint() -> str:
    """12 hex digits that change with the package's source: the names and contents of its Python files."""
    sha = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py")):
        sha.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return sha.hexdigest()[:12]
