"""Estimate how long a sweep takes on many GPUs: the seconds of each run, and a simulation of the schedule.

Nothing is run. The parameters are in a file (configs/scale.yaml), each with its source.
"""

from __future__ import annotations

import csv
import heapq
import json
from pathlib import Path
from typing import Annotated, Any, Dict, List, Literal, Mapping, NamedTuple, Optional, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gcp.errors import UserError
from gcp.options import explained
from gcp.storage import read_yaml

DAY_S = 86_400
FIX = "configs/scale.yaml shows what it should hold"

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class _Sourced(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    source: str


class _Value(_Sourced):
    value: Positive


class _Training(_Sourced):
    images_per_s: Positive
    gpus: Count
    dtype: Literal["float32", "float16"]


class _Scaling(_Sourced):
    speedup: Dict[Count, Positive]


class _SeveralMachines(_Sourced):
    gpus: Count
    speedup: Positive


class _File(_Sourced):
    file: str


class _Loader(_File):
    case: str


class _Evaluation(_File):
    images: Count


class _Values(BaseModel):
    """What a file of parameters must hold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seeds: Count
    tables: Annotated[List[str], Field(min_length=1)]
    training: Dict[str, _Training]
    scaling: _Scaling
    several_machines: _SeveralMachines
    float32_slowdown: _Value
    pruned: _File
    loader: _Loader
    cores_per_gpu: _Value
    evaluation: _Evaluation
    speed_measurement_s: _Value
    bytes_per_image: _Value

    @model_validator(mode="after")
    def _check(self) -> _Values:
        for n in sorted({1} | {log.gpus for log in self.training.values()}):
            if n not in self.scaling.speedup:
                raise ValueError(f"scaling.speedup: has no entry for {n} GPUs")
        return self


def read(path: Path) -> Dict[str, Any]:
    """The parameters in a YAML file. UserError: a value is missing or invalid, named by its key."""
    values = read_yaml(path) or {}
    try:
        _Values.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {explained(error)}; {FIX}", "scale.parameters") from None
    return values


class Run(NamedTuple):
    """A run of a sweep: its seconds on the GPUs that are assigned to it, and the run that it waits for, if any."""

    name: str
    seconds: float
    after: Optional[str] = None


class Schedule(NamedTuple):
    """The seconds until everything has ended, the seconds that slots were busy, in total, and each run's start."""

    seconds: float
    busy_s: float
    begins: Dict[str, float]


def simulate(runs: Sequence[Run], n_slots: int) -> Schedule:
    """List scheduling, longest first: whenever a slot is free, it takes the longest run that does not wait for another.

    dask and SLURM do the same with independent tasks, but take them in the order of submission. ValueError: a run waits
    for one that is not among the runs.
    """
    waiting = sorted(runs, key=lambda run: -run.seconds)
    running: List[tuple] = []  # (end, number, name)
    done, begins, now = set(), {}, 0.0
    while waiting or running:
        ready = [run for run in waiting if run.after is None or run.after in done]
        for run in ready[: n_slots - len(running)]:
            waiting.remove(run)
            begins[run.name] = now
            heapq.heappush(running, (now + run.seconds, len(begins), run.name))
        if not running:
            raise ValueError(f"{waiting[0].name} waits for {waiting[0].after}, which is not one of the runs")
        now, _, name = heapq.heappop(running)
        done.add(name)
    return Schedule(now, sum(run.seconds for run in runs), begins)


class Row(NamedTuple):
    """What a run computes: its network, images by phase, and the fractions of MACs kept before and after pruning."""

    name: str
    network: str
    float32: bool
    dense: int  # images for training the network that pruning starts from
    pruning: int
    finetuning: int
    kept_before: float
    kept_after: float
    after: Optional[str] = None  # the run whose network it starts from


class Parameters:
    """Speeds computed from the parameters of configs/scale.yaml; files that these name are relative to `root`."""

    def __init__(self, values: Mapping[str, Any], root: Path) -> None:
        self.values, self.speedup = values, {int(n): float(x) for n, x in values["scaling"]["speedup"].items()}
        loaded = json.loads((root / values["loader"]["file"]).read_text())["details"]["loader"][
            values["loader"]["case"]
        ]
        self.loader_per_core = loaded["images_per_second"]["ours"] / loaded["threads"]
        self.forward = {
            line["model"]: float(line["throughput_img_per_s"]) for line in _lines(root / values["evaluation"]["file"])
        }
        self._pruned: Dict[str, List[tuple]] = {}
        for line in _lines(root / values["pruned"]["file"]):
            pair = 1 / float(line["macs_reduction"]), 1 / float(line["fig1_throughput_ratio"])
            self._pruned.setdefault(line["base_model"], [(1.0, 1.0)]).append(pair)

    def time_kept(self, network: str, kept: float) -> float:
        """The time of a step relative to the dense network's, if the fraction `kept` of the MACs is left.

        Interpolated linearly between published networks; below the smallest of them, constant.
        """
        points = sorted(self._pruned[network])
        return float(np.interp(kept, *zip(*points)))

    def gpu_speed(self, row: Row, n_gpus: int, kept: float) -> float:
        """Training images per second of the GPUs, if the loader keeps up."""
        log = self.values["training"].get(row.network)
        if log is None:
            raise UserError(
                f"training: has no speed of {row.network}, the network of {row.name}; {FIX}", "scale.network"
            )
        one = log["images_per_s"] / self.speedup[log["gpus"]]
        if row.float32 and log["dtype"] == "float16":
            one /= self.values["float32_slowdown"]["value"]
        return one * self.speedup[n_gpus] / self.time_kept(row.network, kept)

    def loader_speed(self, n_gpus: int) -> float:
        """Images per second that the CPU cores of `n_gpus` GPUs decode and augment."""
        return self.loader_per_core * self.values["cores_per_gpu"]["value"] * n_gpus

    def seconds(self, row: Row, n_gpus: int, endless_loader: bool = False) -> Dict[str, float]:
        """Seconds of a run by phase: dense training, pruning, fine-tuning and evaluation."""
        most = np.inf if endless_loader else self.loader_speed(n_gpus)
        before, after = (min(most, self.gpu_speed(row, n_gpus, kept)) for kept in (row.kept_before, row.kept_after))
        looking = min(most, self.forward[row.network] * n_gpus)
        return {
            "dense": row.dense / before,
            "pruning": row.pruning * (1 / before + 1 / after) / 2,  # the network shrinks from one to the other
            "fine-tuning": row.finetuning / after,
            "evaluation": self.values["evaluation"]["images"] / looking,
        }

    def runs(self, rows: Sequence[Row], n_gpus: int, endless_loader: bool = False) -> List[Run]:
        """The runs of every row at every seed, on `n_gpus` GPUs each."""
        return [
            Run(
                f"{row.name} seed {seed}",
                sum(self.seconds(row, n_gpus, endless_loader).values()),
                row.after and f"{row.after} seed {seed}",
            )
            for row in rows
            for seed in range(self.values["seeds"])
        ]


class Plan(NamedTuple):
    """A sweep on `n_gpus`, `each` per run: days in total, days of measuring speeds, fraction of GPU time in use."""

    n_gpus: int
    each: int
    days: float
    measuring_days: float
    in_use: float
    longest_days: float  # of one run: more GPUs cannot go below it


def plan(parameters: Parameters, rows: Sequence[Row], n_gpus: int, each: int) -> Plan:
    """The simulated sweep; speeds are measured at the end, one run after another on a single slot."""
    runs = parameters.runs(rows, each)
    found = simulate(runs, n_gpus // each)
    measuring = parameters.values["speed_measurement_s"]["value"] * len(runs)
    total, longest = found.seconds + measuring, max(run.seconds for run in runs)
    in_use = found.busy_s * each / (total * n_gpus)
    return Plan(n_gpus, each, total / DAY_S, measuring / DAY_S, in_use, longest / DAY_S)


def plans(parameters: Parameters, rows: Sequence[Row], n_gpus: int) -> List[Plan]:
    """The sweep on `n_gpus` GPUs, for every number of GPUs per run that fits on one machine."""
    return [plan(parameters, rows, n_gpus, each) for each in parameters.speedup if each <= n_gpus]


def _lines(path: Path) -> List[Dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
