"""Run folders and records: what a run leaves behind, and how finished runs are read again.

A run's folder is named by its configuration's fingerprint and holds `config.yaml`, `log.jsonl`, checkpoints
and, written last and atomically, `record.json`: its presence means that the run is done.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator

import yaml

from gcp.config import Config, UserError, physical_cores

RECORD = "record.json"

_NUMBER = (int, float)
_NUMBER_OR_NONE = (int, float, type(None))
# What every record holds; the tables and figures rely on it.
_RECORD_KEYS = {
    "fingerprint": str, "name": str, "scale": str, "seed": int, "config": dict,
    "git_commit": (str, type(None)), "versions": dict, "device": dict, "date": str,
    "model": str, "data": str, "method": str, "objective": str, "target": _NUMBER,
    "stages": dict, "macs_kept": _NUMBER, "params_kept": _NUMBER, "widths": dict, "iterations": list,
    "images_before_finetune": _NUMBER, "images_total": _NUMBER, "seconds": _NUMBER,
}
_STAGES = ("dense", "pruned", "final")
_STAGE_KEYS = {
    "top1": _NUMBER_OR_NONE, "top5": _NUMBER_OR_NONE, "loss": _NUMBER_OR_NONE, "n_eval": int,
    "macs": _NUMBER, "params": _NUMBER, "epochs": _NUMBER, "images": _NUMBER, "seconds": _NUMBER,
    "throughput": (dict, type(None)),
}
_THROUGHPUT_KEYS = {
    "images_per_second": _NUMBER, "latency_s": _NUMBER, "batch": int, "dtype": str, "device": str,
    "threads": int,
}


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
        with _writing(path):
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
    text = json.dumps(_plain(obj, finite=True), indent=1, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; make room or set `output` to "
                        "another folder, then run the command again: finished records are kept") from error


def _sync_folder(folder: Path) -> None:
    # Without this a power cut can undo a rename that the program already counts on.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any, *, finite: bool, place: str = "") -> Any:
    """`value` in JSON's own types. Numbers that are not finite: an error if `finite`, else strings."""
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, without importing numpy
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item, finite=finite, place=f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, finite=finite, place=f"{place}[{n}]") for n, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        if finite:
            place = place.lstrip(".") or "the value"
            raise ValueError(f"{place} is {value}; JSON holds finite numbers or None")
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


# The log

class Log:
    """A JSON-lines file that events are added to, each once: a run that goes on comes by its old events again.

    With `tensorboard` the curves among them are TensorBoard events too, in a folder beside it.
    """

    # What tells an event of this name from another: seconds and images per second differ each time.
    IDENTITY = {"epoch": ("stage", "epoch"), "stage": ("stage",)}
    CURVES = ("training_loss", "lr", "images_per_second", "validation_top1", "validation_loss")

    def __init__(self, path: Path, tensorboard: bool = False) -> None:
        _drop_torn_line(path)
        try:
            events = read_log(path) if path.exists() else []
        except ValueError:  # damaged by somebody: nothing depends on it, it is only added to
            events = []
        self._path, self._said = path, {self._key(event) for event in events}
        self._board, self._tensorboard = None, tensorboard

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, event: str, **values: Any) -> None:
        """Append a line: the event, the time (UTC), the values; "nan" and "inf" as strings. Not if it is there."""
        said = json.loads(json.dumps(_plain({"event": event, **values}, finite=False), allow_nan=False))
        key = self._key(said)
        if key in self._said:
            return
        if self._tensorboard and "stage" in said:
            self._draw(said)
        with _writing(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": _now(), **said}) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that comes after it is synced too: no power cut loses only this
        self._said.add(key)

    def close(self) -> None:
        """Finish the TensorBoard events."""
        if self._board is not None:
            self._board.close()
            self._board = None

    @classmethod
    def _key(cls, event: dict) -> str:
        names = cls.IDENTITY.get(event.get("event"), ())
        if not names or not event.keys() >= set(names):
            names = sorted(event.keys() - {"event", "time"})
        return json.dumps([event.get("event"), {name: event[name] for name in names}])

    def _draw(self, event: dict) -> None:
        """The event's curves as scalars, on the disk before the line is: TensorBoard bears a point given twice."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        with _writing(self._path):
            if self._board is None:
                self._board = EventFileWriter(str(self._path.parent / "tensorboard"))
            values = [Summary.Value(tag=f"{event['stage']}/{key}", simple_value=event[key]) for key in self.CURVES
                      if isinstance(event.get(key), (int, float))]
            self._board.add_event(Event(step=event["step"], wall_time=time.time(), summary=Summary(value=values)))
            self._board.flush()


def check_tensorboard() -> None:
    """UserError where TensorBoard's package is not installed."""
    try:
        import tensorboard.summary.writer.event_file_writer  # noqa: F401
    except ImportError as error:
        raise UserError(f"tensorboard: true needs a package that is not there ({error}); run `pip install -c "
                        "constraints.txt '.[tensorboard]'`, or set it to false") from error


# One run

class Run:
    """One run's folder, locked for this process from `open_run` to `close` or the end of a `with` block."""

    def __init__(self, path: Path, record: dict | None, lock: int, log: Log):
        self.path = path
        self.record = record
        self._lock: int | None = lock
        self._log = log

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, done={self.done})"

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def done(self) -> bool:
        """Whether the run's record is written."""
        return self.record is not None

    def log(self, event: str, **values: Any) -> None:
        """Add an event to `log.jsonl`: see `Log.add`."""
        self._log.add(event, **values)

    def finish(self, record: dict) -> None:
        """Write the record, which makes the run done. ValueError: a key is missing or of the wrong type."""
        record = _plain(record, finite=True)
        problem = _problem(record)
        if problem:
            raise ValueError(f"not a record: {problem}")
        write_json(self.path / RECORD, record)
        self.record = record

    def close(self) -> None:
        """Let other processes open the run."""
        self._log.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def run_path(cfg: Config) -> Path:
    """The folder of the run that `cfg` describes, whether or not it exists."""
    return Path(cfg.output) / f"{cfg.name}-seed{cfg.seed}-{cfg.fingerprint()}"


def is_done(cfg: Config) -> bool:
    """Whether the run that `cfg` describes has its record."""
    return (run_path(cfg) / RECORD).exists()


def is_timed(cfg: Config) -> bool:
    """Whether the run's record has its throughput."""
    return _read_record(run_path(cfg) / RECORD)["stages"]["final"]["throughput"] is not None


def open_run(cfg: Config) -> Run:
    """Make the run's folder or open it again, and lock it.

    UserError: another process has it open, the folder cannot be written, or a record in it cannot be read.
    """
    path = run_path(cfg)
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # The system drops the lock with the process, however that ends; a file that merely exists would stay.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (path / "config.yaml").exists():
            text = yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False)
            with replacing(path / "config.yaml") as temporary:
                temporary.write_text(text, encoding="utf-8")
        record = _read_record(path / RECORD) if (path / RECORD).exists() else None
        log = Log(path / "log.jsonl", cfg.tensorboard)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"{path}: another process is working on this run; wait for it or stop it") from None
    except BaseException:
        os.close(lock)
        raise
    return Run(path, record, lock, log)


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this folder's turn, then have it; the folder is made if need be."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill or a full disk left unfinished: the next one shall start on its own."""
    if not path.exists():
        return
    with _writing(path), open(path, "r+b") as file:
        whole = file.read().rpartition(b"\n")
        if whole[2]:
            file.truncate(len(whole[0]) + len(whole[1]))


def read_log(path: str | os.PathLike) -> list[dict]:
    """The events of a run's `log.jsonl`, oldest first; a torn last line is left out."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


# Reading finished runs

def load_records(folder: str | os.PathLike) -> list[dict]:
    """Every record below `folder`, sorted by path.

    UserError: no such folder, no record in it, or a record that is unreadable or lacks a key.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; give the folder that holds the runs' folders")
    paths = sorted(folder.rglob(RECORD))
    if not paths:
        raise UserError(f"{folder}: holds no {RECORD} at any depth; give a folder with a finished run")
    return [_read_record(path) for path in paths]


def _read_record(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        problem = _problem(record)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except ValueError as error:  # not UTF-8, not JSON, or NaN
        problem = f"not valid JSON: {error}"
    if problem:
        raise UserError(f"{path}: {problem}; remove the file and run the experiment again")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _problem(record: Any) -> str | None:
    """What keeps `record` from being a record, in words; None if nothing does."""
    problem = _key_problem(record, _RECORD_KEYS, "the record")
    if problem:
        return problem
    for name in _STAGES:
        stage = record["stages"].get(name)
        problem = _key_problem(stage, _STAGE_KEYS, f"stages.{name}")
        if not problem and stage["throughput"] is not None:
            problem = _key_problem(stage["throughput"], _THROUGHPUT_KEYS, f"stages.{name}.throughput")
        if problem:
            return problem
    return _key_problem(record["widths"], {"dense": dict, "final": dict}, "widths")


def _key_problem(mapping: Any, keys: dict, place: str) -> str | None:
    if not isinstance(mapping, dict):
        return f"{place} is not a set of keys and values"
    for key, kinds in keys.items():
        if key not in mapping:
            return f"{place} lacks the key '{key}'"
        if not isinstance(mapping[key], kinds) or isinstance(mapping[key], bool):
            return f"'{key}' in {place} is {mapping[key]!r:.60}, which is of the wrong type"
    return None


# Where and with what a run was made

def environment() -> dict:
    """git_commit, versions, device and date of this process, as they go into a record.

    git_commit is None when the package does not come from a git checkout, and ends in "+dirty" when the
    package's files differ from that commit. device.threads is OMP_NUM_THREADS, which MXNet obeys.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), "mxnet": _mxnet_version(),
                     "gluoncv": importlib.metadata.version("gluoncv"),  # its __version__ says otherwise
                     "numpy": importlib.metadata.version("numpy")},
        "device": {"name": "cpu", "cpu": _cpu_model(),
                   "threads": int(threads) if threads.isdigit() else physical_cores()},
        "date": _now(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _git(*arguments: str) -> str | None:
    package = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(package), *arguments],
                              capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _git_commit() -> str | None:
    # A package installed into an environment that lies inside some checkout does not come from that checkout.
    if _git("ls-files", "--error-unmatch", "--", Path(__file__).name) is None:
        return None
    commit = _git("rev-parse", "HEAD")
    return f"{commit}+dirty" if commit and _git("status", "--porcelain", "--", ".") else commit


def _mxnet_version() -> str | None:
    """The version of whichever build of MXNet is installed; the one for each CUDA has its own name."""
    for name in ("mxnet", *(f"mxnet-cu{cuda}" for cuda in range(112, 118))):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
