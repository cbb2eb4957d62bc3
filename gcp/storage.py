"""Files: written whole or not at all, even after a kill or on a full disk; read within limits by a schema; locked.

Anything wrong with a file that is read ends in a one-line `UserError`: the file, the place in it, and what to do.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import hashlib
import json
import math
import os
import re
import stat
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Sequence, Tuple

import filelock
import yaml
from pydantic import TypeAdapter, ValidationError

from gcp.errors import UserError
from gcp.options import explained

JSON_BYTES = 2**28  # limit for files read whole; the largest of ours, a saved network's graph, has a few megabytes
YAML_BYTES = 10**5  # PyYAML reads about 100 kB in a second
DEPTH = 50  # levels of nested lists and sections
YAML_NODES = 10**4  # with every alias expanded
DIGITS = 25  # in a whole number

# Writing


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path to write to; it replaces `path`, synced to disk, if the block ends without an error.

    The temporary file is in the same folder and has the same suffix. A failed write leaves `path` as it was. Raises
    UserError if `path` is a folder or a device, the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # /dev/null would become a file
        raise UserError(f"{path}: is a folder or a device; give the path of a file", key="file.kind")
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
    """Write `obj` as JSON, atomically. Numpy numbers and arrays become plain ones.

    Raises UserError as `replacing` does, and ValueError, which names the place, for a number that is not finite (write
    None instead).
    """
    write_text(path, json.dumps(plain(obj, finite=True), indent=1, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file whole or not at all. Raises UserError as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def readable(text: str) -> str:
    """The text with bytes that are not UTF-8, which names of files can hold, as escapes: JSON is read without them."""
    return text.encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's error about a file that cannot be written into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; free some space or set `output` "
            "to another folder, then run the command again: finished records are kept",
            key="file.write",
        ) from error


def _sync_folder(folder: Path) -> None:
    # Without this, a power cut can undo a rename on which the program already relies.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: Any, *, finite: bool, place: str = "") -> Any:
    """`value` in JSON's own types. Numbers that are not finite raise ValueError if `finite`, or else become strings."""
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, without importing numpy
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item, finite=finite, place=f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, finite=finite, place=f"{place}[{n}]") for n, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        if finite:
            place = place.lstrip(".") or "the value"
            raise ValueError(f"{place} is {value}; JSON can hold only finite numbers or None")
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill or a full disk left unfinished, so that the next one starts on a new line."""
    if not path.exists():
        return
    whole = read_bytes(path).rpartition(b"\n")
    with writing(path), open(path, "r+b") as file:
        if whole[2]:
            file.truncate(len(whole[0]) + len(whole[1]))


def now() -> str:
    """The time in UTC, to the second, in ISO 8601 format."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def network_prefix(name: str | os.PathLike) -> str:
    """The prefix of a saved network's two files, by its name: the prefix itself, or the path of one of them."""
    return re.sub(r"(-symbol\.json|-0000\.params)$", "", str(name))


def network_files(name: str | os.PathLike) -> Tuple[Path, Path]:
    """The two files of a saved network, by its name: see `network_prefix`."""
    prefix = network_prefix(name)
    return Path(prefix + "-symbol.json"), Path(prefix + "-0000.params")


def content_hash(name: str, key: str, others: Sequence[Path] = ()) -> str:
    """SHA-256 of a file, or of both files of a saved network if `name` is their prefix or the path of one of them, and
    of `others`.

    `key` is the configuration key that names the file. Raises UserError if a file cannot be read.
    """
    network = network_files(name)
    paths = [Path(name)] if Path(name).is_file() and Path(name) not in network else network
    sha = hashlib.sha256()
    try:
        for path in (*paths, *others):
            sha.update(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{key}: '{name}' cannot be read ({error.strerror}); create it first, or give another"
        ) from error
    return sha.hexdigest()


# Locks


@contextlib.contextmanager
def locked(folder: Path, name: str = "lock", wait: bool = True) -> Iterator[None]:
    """Hold the file lock `name` of a folder, which is created if necessary, until the block or the process ends.

    While another process holds the lock, this one waits, and says so on stderr; with `wait` False it raises UserError
    instead, as it does if the folder cannot be written to. To lock a single file, lock its folder under a name derived
    from the file's name.
    """
    lock = filelock.FileLock(str(folder / name))
    with contextlib.ExitStack() as held:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(lock.acquire(timeout=1 if wait else 0))
            except filelock.Timeout:
                if not wait:
                    raise UserError(
                        f"{folder}: another process is at work here; wait for it or stop it, then run the same "
                        "command again",
                        key="file.locked",
                    ) from None
                print(f"waiting for another process that is at work in {folder}", file=sys.stderr, flush=True)
                held.enter_context(lock.acquire(timeout=-1))
        yield


# Reading

REPLACE = "give another file, or remove it and create it again"


def read_text(path: str | os.PathLike, fix: str = REPLACE, limit: int = JSON_BYTES) -> str:
    """A UTF-8 text file of at most `limit` bytes; `fix`, what the user can do about the file, ends error messages."""
    return _decoded(read_bytes(path, fix, limit), str(path), fix)


def read_bytes(path: str | os.PathLike, fix: str = REPLACE, limit: int = JSON_BYTES) -> bytes:
    """A file's content. Raises UserError as `opened` does."""
    with opened(path, fix, limit) as file:
        return file.read(limit)


@contextlib.contextmanager
def opened(path: str | os.PathLike, fix: str = REPLACE, limit: int = JSON_BYTES) -> Iterator[BinaryIO]:
    """A file to read.

    Raises UserError if it cannot be read, is longer than `limit`, or is not an ordinary file (a pipe could block
    forever).
    """
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            kind = "a folder" if stat.S_ISDIR(about.st_mode) else "not a regular file"
            raise UserError(f"{path}: is {kind}; {fix}", key="file.kind")
        if about.st_size > limit:
            raise UserError(
                f"{path}: has {about.st_size:,} bytes, but at most {limit:,} are read; {fix}", key="file.size"
            )
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {fix}", key="file.read") from None
    except ValueError as error:  # a null byte in the path, or characters that file names on this system cannot hold
        raise UserError(f"{str(path)!r}: not a valid path ({error}); {fix}", key="file.read") from None


def expanded(path: str | os.PathLike) -> Path:
    """The path with `~` and `~user` expanded. Raises UserError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such user on this machine; give the folder's path", "file.user") from None


def read_json(path: str | os.PathLike, schema: Any, fix: str = REPLACE, limit: int = JSON_BYTES) -> Any:
    """The content of a JSON file as `schema`, a pydantic model or any type that pydantic knows (`Dict[str, int]`).

    Raises UserError if the file is missing, too long, not UTF-8, not JSON, or does not match the schema. JSON is read
    strictly: no NaN or Infinity, no duplicate keys, no whole number of more than `DIGITS` digits, no more than `DEPTH`
    levels.
    """
    return parse_json(read_bytes(path, fix, limit), schema, str(path), fix)


def parse_json(content: str | bytes, schema: Any, place: str, fix: str = REPLACE) -> Any:
    """As `read_json`, but from text, such as one line of a file; `place` begins the messages."""
    text = _decoded(content, place, fix) if isinstance(content, bytes) else content
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_short_int, parse_float=_finite
        )
        _check(value)
    except RecursionError:
        raise UserError(f"{place}: has more than {DEPTH} levels; {fix}", key="json.syntax") from None
    except ValueError as error:
        raise UserError(f"{place}: not valid JSON: {error}; {fix}", key="json.syntax") from None
    try:
        return TypeAdapter(schema).validate_json(text)
    except ValidationError as error:
        raise UserError(f"{place}: {explained(error)}; {fix}", key="json.schema") from None


def read_yaml(path: str | os.PathLike, fix: str = "give the path of a YAML file") -> Any:
    """The content of a YAML file, within limits: sections, lists, text, numbers, true and false.

    Raises UserError if it is anything else.
    """
    return parse_yaml(read_text(path, fix, YAML_BYTES), str(path))


def parse_yaml(text: str, place: str) -> Any:
    """As `read_yaml`, but from text; `place` begins the messages."""
    try:
        return copy.deepcopy(_parsed(text))
    except RecursionError:
        raise UserError(f"{place}: not valid YAML: more than {DEPTH} levels", key="yaml.syntax") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{place}{line}: not valid YAML: {problem}", key="yaml.syntax") from None


@lru_cache(maxsize=64)  # what other configurations build on is read again for each of them, and PyYAML is slow
def _parsed(text: str) -> Any:
    value = yaml.load(text, _Loader)
    _check(value)
    return value


def _decoded(content: bytes, place: str, fix: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{place}: not a text file in UTF-8; {fix}", key="file.encoding") from None


def _check(value: Any, depth: int = 0) -> None:
    """Raise ValueError for more than `DEPTH` levels, or text that can be neither printed nor part of a file name."""
    if depth > DEPTH:
        raise ValueError(f"more than {DEPTH} levels")
    if isinstance(value, str) and ("\0" in value or re.search("[\ud800-\udfff]", value)):
        raise ValueError(f"{value!r:.60} contains a null character or half a surrogate pair")
    if isinstance(value, dict):
        for key, item in value.items():
            _check(key, depth + 1)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.60} is given twice")
    return values


def _refuse(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _short_int(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text:.30} is too large for a number")
    return float(text)


def yaml_text(value: Any, width: int = 80) -> str:
    """YAML that `parse_yaml` reads back as the same plain values, with keys in their own order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=width)


class _Dumper(yaml.SafeDumper):
    """Quotes text that the loader would take for a number."""


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-4 is a number (in YAML 1.1, text), duplicate keys are errors, there are no dates.

    1:30 and 010, which YAML 1.1 reads as 90 (to base 60) and 8, stay text, which no key that wants a number accepts.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and self._size(node, {}) > YAML_NODES:
            raise yaml.composer.ComposerError(None, None, f"holds more than {YAML_NODES} values", node.start_mark)
        return node

    def _size(self, node: yaml.Node, known: Dict[yaml.Node, float]) -> float:
        """The number of values with every alias expanded; infinite if a value contains itself."""
        if node not in known:
            known[node] = math.inf
            pairs = isinstance(node, yaml.MappingNode)
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            children = [child for part in parts for child in (part if pairs else (part,))]
            known[node] = 1 + sum(self._size(child, known) for child in children)
        return known[node]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag.endswith(":int") and len(str(node.value)) > DIGITS:
                raise ValueError("too many digits")
            return super().construct_object(node, deep)
        except (ValueError, IndexError, KeyError, AttributeError):  # what PyYAML's own constructors raise
            kind = node.tag.rpartition(":")[2]
            problem = f"{str(node.value)!r:.60} is not a value of type '{kind}'"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: function
    for tag, function in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _KINDS
}
_RESOLVED_HERE = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _RESOLVED_HERE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _RESOLVED_HERE[0], re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"), list("-+0123456789")
)
_EXPONENT = r"[eE][-+]?[0-9]+"
_FLOAT = (
    rf"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)({_EXPONENT})?$|[-+]?[0-9][0-9_]*{_EXPONENT}$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_RESOLVED_HERE[1], re.compile(_FLOAT), list("-+.0123456789"))
