"""Run folders and records: what a run leaves behind, and how finished runs are read again.

A run's folder is named after its configuration's fingerprint and holds `config.yaml`, `log.jsonl`, checkpoints and
`record.json`, which is written once, last and atomically: its presence means that the run is done. `speed.json` beside
it has the speeds of the run's networks, which are measured later, when the machine is idle.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Callable, Dict, Iterator, List, Literal, NamedTuple, Optional, Sequence, Tuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gcp.errors import UserError
from gcp.experiment.config import Config
from gcp.experiment.log import Log
from gcp.graph.channels import layer_widths
from gcp.graph.network import Network
from gcp.options import LONGEST, explained
from gcp.search.options import Range
from gcp.storage import locked, plain, read_json, write_json, write_text, yaml_text

RECORD, SPEED = "record.json", "speed.json"

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=10**18)]
Positive = Annotated[float, Field(gt=0)]
Widths = Dict[str, Annotated[int, Field(ge=1, le=10**6)]]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Stage(_Part):
    """One of a run's networks: accuracies on the test images (fractions), costs, and what it took to produce it."""

    top1: Fraction
    top5: Fraction
    loss: Optional[float]
    n_eval: int = Field(ge=1)
    macs: Count
    params: Count
    memory: Optional[Count] = None  # peak activation memory, bytes for one image; None in older records
    epochs: float = Field(ge=0)
    images: Count
    seconds: float = Field(ge=0)
    training_loss: Optional[float] = None
    validation_loss: Optional[float] = None
    validation_top1: Optional[Fraction] = None
    validation_top5: Optional[Fraction] = None
    n_validation: Optional[Annotated[int, Field(ge=1)]] = None  # None in older records
    threads: Optional[int] = None


class Stages(_Part):
    """The dense network, the pruned one before fine-tuning, and the final one."""

    dense: Stage
    pruned: Stage
    final: Stage


class LayerWidths(_Part):
    """Output channels of a conv or dense layer before and after pruning; None if the network does not have the layer.

    Layers that share a group are tied: their channels are removed together.
    """

    name: str
    groups: List[str]
    dense: Optional[Annotated[int, Field(ge=1)]]
    final: Optional[Annotated[int, Field(ge=1)]]


class RunWidths(_Part):
    """Channels per group before and after pruning, and the same per layer, which older records do not have."""

    dense: Widths
    final: Widths
    layers: Optional[List[LayerWidths]] = None


class Device(_Part):
    """The hardware of a run; `cpu_model` distinguishes processors of the same name (see `runtime.environment`)."""

    name: str = Field(pattern=r"^(cpu|gpu\(\d{1,4}\))$")
    cpu: str = Field(max_length=LONGEST)
    cpu_model: Optional[str] = Field(None, max_length=LONGEST)  # None in older records
    gpu: Optional[str] = Field(None, max_length=LONGEST)  # None on a CPU, or if the driver does not report it
    threads: int = Field(ge=1, le=1024)


class Trial(_Part):
    """One trial of a search: its values, its validation loss and images, and why it failed, if it did."""

    trial: Count
    state: Literal["complete", "pruned", "failed"]
    value: Optional[float]
    images: Count
    values: Dict[str, Any]
    why: Optional[str] = None


class SearchStudy(_Part):
    """The trials of a run or an iteration, the range or choices of each key, and the number of the best trial."""

    name: str = Field(max_length=LONGEST)
    best: Count
    parameters: Dict[str, Range]
    trials: List[Trial]

    @model_validator(mode="after")
    def _check(self) -> SearchStudy:
        for trial in self.trials:
            if trial.values.keys() != self.parameters.keys():
                raise ValueError(f"the values of trial {trial.trial} are not those of the parameters")
            if trial.state == "complete" and trial.value is None:
                raise ValueError(f"trial {trial.trial} is complete, but has no loss")
        if not any((trial.trial, trial.state) == (self.best, "complete") for trial in self.trials):
            raise ValueError(f"trial {self.best}, which should be the best, is not a complete one")
        return self


class Record(_Part):
    """One finished run."""

    fingerprint: str = Field(pattern="^[0-9a-f]{12}$")
    name: str
    scale: Literal["paper", "reduced", "smoke"]
    seed: Count
    config: Dict[str, Any]
    git_commit: Optional[str]
    versions: Dict[str, Optional[str]]
    device: Device
    date: str
    model: str
    data: str
    method: str
    objective: str
    target: float = Field(gt=0, le=1)
    round_to: int = Field(ge=1)
    stages: Stages
    cost_predicted: Optional[Annotated[float, Field(ge=0)]] = None  # by the budget's cost, as a fraction of dense
    widths: RunWidths
    history: List[Dict[str, Any]]
    images: Dict[str, Count]  # images that pruning took, by purpose
    searches: List[SearchStudy] = []  # empty in older records
    images_skipped: Count = 0
    seconds: float = Field(ge=0)

    @property
    def macs_kept(self) -> float:
        """Multiply-accumulates of the final network as a fraction of the dense one's."""
        return self.stages.final.macs / self.stages.dense.macs

    @property
    def params_kept(self) -> float:
        """Parameters of the final network as a fraction of the dense one's."""
        return self.stages.final.params / self.stages.dense.params

    @property
    def images_before_finetune(self) -> int:
        """The number of images that pruning trained on or looked at, over all purposes."""
        return sum(self.images.values())

    @property
    def images_total(self) -> int:
        """The number of images after the dense network was trained: pruning and fine-tuning."""
        return self.images_before_finetune + self.stages.final.images


class Timing(_Part):
    """One network's latency: median, spread (interquartile range over median), passes, and whether it was noisy."""

    latency_s: Positive
    images_per_second: Positive
    spread: Optional[Annotated[float, Field(ge=0)]] = None
    n: Optional[Count] = None
    noisy: Optional[bool] = None  # None if it was not recorded
    attempts: Optional[Count] = None


class Speed(_Part):
    """The dense and the final network timed alternately, with the setup (see `clock.Setup`) and the hardware."""

    setup: Dict[str, Any]
    hardware: Dict[str, Any]
    dense: Timing
    final: Timing

    @property
    def latency_kept(self) -> float:
        """The final network's latency as a fraction of the dense one's."""
        return self.final.latency_s / self.dense.latency_s


class BudgetLatency(_Part):
    """The final network's latency as a fraction of the dense one's, in the setup of the latency model.

    `rounds`: where several runs were timed together, round by round, the fraction in each round; `kept` is their mean.
    """

    setup: Dict[str, Any]
    hardware: Dict[str, Any]
    kept: Positive
    dense_s: Optional[Positive] = None  # the dense network's seconds; None if they were not recorded, as below
    noisy: Optional[bool] = None
    rounds: Optional[List[Positive]] = None

    @property
    def error(self) -> float:
        """The relative standard error of `kept`; NaN if there are not several rounds that could tell."""
        if self.rounds is None or len(self.rounds) < 2:
            return math.nan
        return statistics.stdev(self.rounds) / len(self.rounds) ** 0.5 / self.kept


class Speeds(_Part):
    """The content of `speed.json`: throughput and, if the target applies to a latency, that latency."""

    throughput: Speed
    budget: Optional[BudgetLatency] = None

    @property
    def latency_kept(self) -> float:
        """The final network's latency as a fraction of the dense one's, in the budget's setup if it has one."""
        return self.throughput.latency_kept if self.budget is None else self.budget.kept


class Finished(NamedTuple):
    """A finished run as it is read back; `speeds` is None if they have not been measured."""

    path: Path
    record: Record
    speeds: Optional[Speeds]


def whole(schema: Any, values: Dict[str, Any], folder: Path) -> Any:
    """The values as `schema`, a part of a record. UserError: the results in the folder do not form a valid one."""
    try:
        return schema.model_validate(plain(values, finite=True))
    except ValidationError as error:
        wrong = f"the results saved there do not form a valid record: {explained(error)}"
        fix = "remove whichever of dense.json, pruned.json and final.json is wrong, and it will be computed again"
        raise UserError(f"{folder}: {wrong}; {fix}", key="record.facts") from error


# One run


@dataclass
class Run:
    """One run's folder and that of its dense network (`shared`); `log(event, **values)` adds a line to `log.jsonl`."""

    path: Path
    record: Optional[Record]
    log: Callable[..., None]
    shared: Path

    @property
    def done(self) -> bool:
        """Whether the run's record is written."""
        return self.record is not None

    def finish(self, **values: Any) -> Record:
        """Write the record, which makes the run done; `values` are the keys of `Record`."""
        record = whole(Record, values, self.path)
        write_json(self.path / RECORD, record.model_dump(mode="json"))
        self.record = record
        return record


def layer_rows(dense: Network, final: Network) -> List[Dict[str, Any]]:
    """`LayerWidths` of two networks: the dense one's layers in order, other layers after their predecessors."""
    before, after = layer_widths(dense), layer_widths(final)
    names = list(before)
    for earlier, name in zip([None, *after], after):
        if name not in before:
            names.insert(0 if earlier is None else names.index(earlier) + 1, name)
    absent = (None, ())
    rows = [(name, before.get(name, absent), after.get(name, absent)) for name in names]
    return [
        {"name": name, "groups": list(had[1] or has[1]), "dense": had[0], "final": has[0]} for name, had, has in rows
    ]


def run_path(cfg: Config) -> Path:
    """The folder of the run that `cfg` describes, whether or not it exists."""
    return Path(cfg.output) / f"{cfg.name}-seed{cfg.seed}-{cfg.fingerprint()}"


def dense_path(cfg: Config) -> Path:
    """The folder of the trained network that the run starts from, shared by runs with the same dense fingerprint."""
    return Path(cfg.output) / f"dense-seed{cfg.seed}-{cfg.dense_fingerprint()}"


def is_done(cfg: Config) -> bool:
    """Whether the run that `cfg` describes has a record; False while the network that it starts from does not exist."""
    return not cfg.model.is_pattern and (run_path(cfg) / RECORD).exists()


def is_timed(cfg: Config) -> bool:
    """Whether the run's throughput has been measured with the configured batch."""
    speeds = read_speeds(run_path(cfg))
    return speeds is not None and speeds.throughput.setup.get("batch") == cfg.throughput.batch


@contextlib.contextmanager
def open_run(cfg: Config) -> Iterator[Run]:
    """Create or reopen the run's folder, and lock it until the block ends.

    A run that is refused before it has done anything leaves no folder: nobody would finish it, and reports would count
    it as under way. UserError: another process has the folder open, the folder cannot be written, or a record in it
    cannot be read.
    """
    path = run_path(cfg)
    with locked(path, wait=False):
        if not (path / "config.yaml").exists():
            write_text(path / "config.yaml", yaml_text(cfg.model_dump(mode="json")))
        record = _read(path / RECORD, Record) if (path / RECORD).exists() else None
        try:
            with Log(path / "log.jsonl", cfg.tensorboard) as log:
                yield Run(path, record, log.add, dense_path(cfg))
        except UserError:
            if set(os.listdir(path)) <= {"config.yaml", "lock"}:
                shutil.rmtree(path, ignore_errors=True)
            raise


# Reading finished runs


def load_records(folder: Path) -> List[Finished]:
    """Every finished run below `folder`, sorted by path.

    UserError: the folder does not exist or holds no record, or a file in it is not valid.
    """
    found = [_finished(path) for path in record_paths(folder)]
    if not found:
        raise UserError(f"{folder}: holds no {RECORD} at any depth; give a folder with a finished run")
    return found


def load_readable(folder: Path, without: Sequence[str] = ()) -> Tuple[List[Finished], List[str]]:
    """As `load_records`, but with messages instead of an error for unreadable runs. `without`: see `walk`."""
    found, problems = [], []
    for path in record_paths(folder, without):
        try:
            found.append(_finished(path))
        except UserError as error:
            problems.append(str(error))
    return found, problems


def walk(folder: Path, without: Sequence[str] = ()) -> Iterator[Tuple[str, List[str], List[str]]]:
    """As `os.walk`, without those direct subfolders of `folder` that have one of the names in `without`."""
    for where, folders, files in os.walk(folder):
        if Path(where) == Path(folder):
            folders[:] = [name for name in folders if name not in without]
        yield where, folders, files


def record_paths(folder: Path, without: Sequence[str] = ()) -> List[Path]:
    """The paths of the records below `folder`, sorted; `without`: see `walk`. UserError: there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; give the folder that holds the runs' folders")
    # Not by globbing, which skips dangling links.
    return sorted(
        Path(where) / RECORD for where, folders, files in walk(folder, without) if RECORD in {*folders, *files}
    )


def _finished(path: Path) -> Finished:
    return Finished(path.parent, _read(path, Record), read_speeds(path.parent))


def read_speeds(path: Path) -> Optional[Speeds]:
    """The measured speeds of the run in the folder `path`; None if there are none yet."""
    return _read(path / SPEED, Speeds) if (path / SPEED).exists() else None


def _read(path: Path, schema: Any) -> Any:
    return read_json(path, schema, "remove the file and run the experiment again")
