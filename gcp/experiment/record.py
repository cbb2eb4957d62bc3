"""Run folders and records: what a run leaves behind, and how finished runs are read again.

A run's folder is named by its configuration's fingerprint and holds `config.yaml`, `log.jsonl`, checkpoints
and, written last and atomically, `record.json`: its presence means that the run is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import yaml

from gcp.errors import UserError
from gcp.experiment.config import Config
from gcp.storage import drop_torn_line, locked, now, plain, replacing, write_json, writing

RECORD = "record.json"

_NUMBER = (int, float)
_NUMBER_OR_NONE = (int, float, type(None))
# What every record holds; the tables and figures rely on it.
_RECORD_KEYS = {
    "fingerprint": str,
    "name": str,
    "scale": str,
    "seed": int,
    "config": dict,
    "git_commit": (str, type(None)),
    "versions": dict,
    "device": dict,
    "date": str,
    "model": str,
    "data": str,
    "method": str,
    "objective": str,
    "target": _NUMBER,
    "stages": dict,
    "macs_kept": _NUMBER,
    "params_kept": _NUMBER,
    "widths": dict,
    "iterations": list,
    "images_before_finetune": _NUMBER,
    "images_total": _NUMBER,
    "seconds": _NUMBER,
}
_STAGES = ("dense", "pruned", "final")
_STAGE_KEYS = {
    "top1": _NUMBER_OR_NONE,
    "top5": _NUMBER_OR_NONE,
    "loss": _NUMBER_OR_NONE,
    "n_eval": int,
    "macs": _NUMBER,
    "params": _NUMBER,
    "epochs": _NUMBER,
    "images": _NUMBER,
    "seconds": _NUMBER,
    "throughput": (dict, type(None)),
}
_THROUGHPUT_KEYS = {
    "images_per_second": _NUMBER,
    "latency_s": _NUMBER,
    "batch": int,
    "dtype": str,
    "device": str,
    "threads": int,
}


# The log


class Log:
    """A JSON-lines file that events are added to, each once: a run that goes on comes by its old events again.

    With `tensorboard` the curves among them are TensorBoard events too, in a folder beside it.
    """

    # What tells an event of this name from another: seconds and images per second differ each time.
    IDENTITY = {"epoch": ("stage", "epoch"), "stage": ("stage",)}
    CURVES = ("training_loss", "lr", "images_per_second", "validation_top1", "validation_loss")

    def __init__(self, path: Path, tensorboard: bool = False) -> None:
        drop_torn_line(path)
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
        said = json.loads(json.dumps(plain({"event": event, **values}, finite=False), allow_nan=False))
        key = self._key(said)
        if key in self._said:
            return
        if self._tensorboard and "stage" in said:
            self._draw(said)
        with writing(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": now(), **said}) + "\n")
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

        with writing(self._path):
            if self._board is None:
                self._board = EventFileWriter(str(self._path.parent / "tensorboard"))
            values = [
                Summary.Value(tag=f"{event['stage']}/{key}", simple_value=event[key])
                for key in self.CURVES
                if isinstance(event.get(key), (int, float))
            ]
            self._board.add_event(Event(step=event["step"], wall_time=time.time(), summary=Summary(value=values)))
            self._board.flush()


def check_tensorboard() -> None:
    """UserError where TensorBoard's package is not installed."""
    try:
        import tensorboard.summary.writer.event_file_writer  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"tensorboard: true needs a package that is not there ({error}); run `pip install -c "
            "constraints.txt '.[tensorboard]'`, or set it to false"
        ) from error


# One run


class Run:
    """One run's folder, locked for this process from `open_run` to `close` or the end of a `with` block."""

    def __init__(self, path: Path, record: dict | None, lock: contextlib.ExitStack, log: Log):
        self.path = path
        self.record = record
        self._lock = lock
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
        record = plain(record, finite=True)
        problem = _problem(record)
        if problem:
            raise ValueError(f"not a record: {problem}")
        write_json(self.path / RECORD, record)
        self.record = record

    def close(self) -> None:
        """Let other processes open the run."""
        self._log.close()
        self._lock.close()


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
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(path, wait=False))
        if not (path / "config.yaml").exists():
            text = yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False)
            with replacing(path / "config.yaml") as temporary:
                temporary.write_text(text, encoding="utf-8")
        record = _read_record(path / RECORD) if (path / RECORD).exists() else None
        log = Log(path / "log.jsonl", cfg.tensorboard)
        return Run(path, record, stack.pop_all(), log)


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
