"""A run's log: events as JSON lines, each written once, and training curves as TensorBoard events beside it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Dict

from gcp.errors import UserError
from gcp.storage import drop_torn_line, now, parse_json, plain, read_text, writing


class Log:
    """A JSON-lines file that each event is appended to only once, since a resumed run produces its old events again.

    With `tensorboard`, training curves are also written as TensorBoard events, in a folder beside the file.
    """

    # The keys that identify an event of this name: seconds and images per second differ each time.
    IDENTITY = {"epoch": ("stage", "epoch"), "stage": ("stage",)}
    CURVES = ("training_loss", "lr", "images_per_second", "validation_top1", "validation_loss")

    def __init__(self, path: Path, tensorboard: bool = False) -> None:
        drop_torn_line(path)
        try:
            events = read_log(path) if path.exists() else []
        except UserError:  # a damaged file: nothing depends on its events, new ones are only appended
            events = []
        self._path, self._said = path, {self._key(event) for event in events}
        self._board, self._tensorboard = None, tensorboard

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, event: str, **values: Any) -> None:
        """Append a line with the event, the time (UTC) and the values (NaN and inf as strings), unless it is there."""
        said = json.loads(json.dumps(plain({"event": event, **values}, finite=False), allow_nan=False))
        key = self._key(said)
        if key in self._said:
            return
        if self._tensorboard and "stage" in said:
            self._draw(said)
        with writing(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": now(), **said}) + "\n")
            file.flush()
            os.fsync(file.fileno())  # later checkpoints are synced too: a power cut cannot lose this line alone
        self._said.add(key)

    def close(self) -> None:
        """Close the file of TensorBoard events."""
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
        """Write the event's curves as scalars, before its line is written: TensorBoard tolerates a repeated point."""
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
    """Raise UserError if the TensorBoard package is not installed."""
    try:
        import tensorboard.summary.writer.event_file_writer  # noqa: F401
    except ImportError as error:
        fix = "run `pip install -c constraints.txt '.[tensorboard]'`, or set it to false"
        raise UserError(f"tensorboard: true needs a package that is not installed ({error}); {fix}") from error


def read_log(path: str | os.PathLike) -> list[dict]:
    """The events of a run's `log.jsonl`, oldest first; an incomplete last line is left out."""
    return [parse_json(line, Dict[str, Any], str(path)) for line in read_text(path).split("\n")[:-1]]
