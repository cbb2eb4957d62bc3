"""Experiment configurations: a YAML file in, a frozen, fully checked `Config` out.

A file may build on another (`base: other.yaml`), and the command line may set single keys (`--set a.b=c`).
Whatever is wrong with them ends in one `UserError` line: the place, the key, the value, what would be right.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import glob
import hashlib
import json
import math
import os
import re
import sys
from pathlib import Path
# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import (Annotated, Any, Callable, ClassVar, Dict, Iterator, Literal, NoReturn, Optional, Sequence, Set,
                    Tuple, Union)

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class UserError(Exception):
    """Something that the user can put right; its message is one line: where, what, and what to do."""

    exit_status = 2


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        """UserError instead of usage and exit."""
        raise UserError(f"{message}; `{self.prog} --help` says what it takes")


def main(function: Callable[[list[str]], None]) -> NoReturn:
    """Run a script's `function` on the command line's arguments and exit: 0; 2 user error; 130 Ctrl-C."""
    try:
        function(sys.argv[1:])
    except UserError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("\ninterrupted: run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


# Sections. Each description doubles as the hint in the error message about its key.

class _Section(BaseModel):
    # Strict: `seed: "1"` or `pretrained: 1` is a mistake to report, not something to convert.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    # Keys younger than the first records: at their defaults, fingerprints are those from before.
    YOUNGER: ClassVar[Set[str]] = set()
    # Keys that decide no number: in no fingerprint, whatever they say.
    UNCOUNTED: ClassVar[Set[str]] = set()

    def unset(self) -> Dict[str, Any]:
        """What fingerprints leave out, of this section and those in it, as pydantic's `exclude` wants it.

        That is: the younger keys at their defaults, and the keys that decide no number.
        """
        fields = type(self).model_fields
        found: Dict[str, Any] = {key: True for key in fields if key in self.UNCOUNTED
                                 or key in self.YOUNGER and getattr(self, key) == fields[key].default}
        for key in fields.keys() - found.keys():
            if isinstance(getattr(self, key), _Section):
                found[key] = getattr(self, key).unset()
        return found


def _listed(value: Any) -> Any:
    # YAML has lists where a frozen config needs tuples, and strict mode does not convert between them.
    return tuple(value) if isinstance(value, list) else value


class Model(_Section):
    """Which network to start from."""

    name: Annotated[str, Field(
        min_length=1, description="a GluonCV name, or the path prefix of a saved network")]
    pretrained: Annotated[bool, Field(description="true: start from GluonCV's published weights")] = False
    weights: Annotated[Optional[str], Field(
        min_length=1, description="with pretrained: the file of GluonCV's published weights, where there is no "
                                  "network to fetch it")] = None

    new_head: Annotated[bool, Field(
        description="true: a saved network gets a new output layer, of as many classes as the data have")] = False

    YOUNGER: ClassVar[Set[str]] = {"new_head"}
    # Where the file lies decides nothing: its hash has to be the published one.
    UNCOUNTED: ClassVar[Set[str]] = {"weights"}

    @property
    def is_saved(self) -> bool:
        """Whether `name` is the path prefix of a saved network; no GluonCV name contains a slash."""
        return "/" in self.name or os.sep in self.name or os.path.isfile(self.name + "-symbol.json")

    @property
    def is_pattern(self) -> bool:
        """Whether `name` is a pattern that no saved network fits yet."""
        return self.is_saved and ("*" in self.name or "{seed}" in self.name)

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.pretrained and self.is_saved:
            raise ValueError(f"pretrained: true goes with a GluonCV name, but {self.name!r} is a saved "
                             "network, which brings its own weights; set model.pretrained to false")
        if self.weights is not None and not self.pretrained:
            raise ValueError("weights is the file of GluonCV's published weights; set model.pretrained to true (your "
                             "own weights come as a saved network: give its prefix as model.name)")
        if self.new_head and not self.is_saved:
            raise ValueError(f"new_head: true goes with a saved network, but {self.name!r} is a GluonCV name, whose "
                             "output layer follows the data anyway; set model.new_head to false")
        return self


class Data(_Section):
    """Which images, at which size, and how the training images are divided."""

    # What `root` should be where a data set cannot do without.
    ROOTS: ClassVar[Dict[str, str]] = {
        "folder": "what holds train/ and test/, or train.rec and test.rec",
        "imagenet": "what holds train.rec and val.rec, as scripts/prepare.py writes them, or train/ and val/",
        "caltech256": "256_ObjectCategories.tar, or the folder that it unpacks to"}
    YOUNGER: ClassVar[Set[str]] = {"per_class", "split_file", "on_bad_image"}
    UNCOUNTED: ClassVar[Set[str]] = {"workers"}

    name: Annotated[Literal["digits", "fashion_mnist", "folder", "imagenet", "caltech256"], Field(
        description="the data set")]
    root: Annotated[Optional[str], Field(
        min_length=1, description="the folder that holds the data set's files; caltech256: or the tar")] = None
    input: Annotated[Tuple[int, int, int], Field(
        description="a list of channels, height, width, such as [3, 32, 32]")] = (3, 32, 32)
    batch: Annotated[int, Field(ge=1, description="images in a training batch")] = 64
    n_train: Annotated[Optional[int], Field(
        ge=2, description="cap on the training images, those held out for validation included")] = None
    validation: Annotated[float, Field(
        ge=0.01, le=0.5, description="fraction of the training images held out, in [0.01, 0.5]")] = 0.1
    augment: Annotated[Literal["none", "crop", "crop_flip", "imagenet"], Field(
        description="random changes to training images")] = "none"
    per_class: Annotated[int, Field(
        ge=2, description="caltech256: training images of a class, those held out for validation included")] = 60
    split_file: Annotated[Optional[str], Field(
        min_length=1, description="caltech256: .json or .csv file of the split, read if there, else written; {seed} in "
                                  "it stands for the seed")] = None
    on_bad_image: Annotated[Literal["error", "skip"], Field(
        description="images that cannot be decoded: an error, or left out and counted")] = "error"
    workers: Annotated[int, Field(ge=0, description="threads that decode images; 0: one per physical core")] = 0

    _lists = field_validator("input", mode="before")(_listed)

    @field_validator("input")
    @classmethod
    def _check_input(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if value[0] != 3 or min(value) < 1:
            raise ValueError("should be three channels and a positive height and width")
        return value

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.name in self.ROOTS and self.root is None:
            raise ValueError(f"name: {self.name} needs a root; set data.root to {self.ROOTS[self.name]}")
        if self.name != "caltech256":
            for key in ("per_class", "split_file"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} is for name: caltech256, and {self.name} brings its own test images; "
                                     f"take data.{key} away")
        if self.split_file is not None and not self.split_file.lower().endswith((".json", ".csv")):
            raise ValueError(f"split_file: {self.split_file!r} should end in .json or .csv")
        return self


class Recipe(_Section):
    """How all weights are trained: SGD, the learning rate warmed up linearly, then a cosine to zero or steps down."""

    YOUNGER: ClassVar[Set[str]] = {"nesterov", "schedule", "step_epochs", "step_factor", "mixup", "dtype", "teacher",
                                   "teacher_weight", "teacher_temperature"}

    epochs: Annotated[int, Field(ge=0, description="passes over the training images, 0 or more")]
    lr: Annotated[float, Field(gt=0, description="highest learning rate, above 0")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="in [0, 1)")] = 0.9
    nesterov: Annotated[bool, Field(description="true: Nesterov's momentum, GluonCV's `nag`")] = False
    wd: Annotated[float, Field(ge=0, description="weight decay, 0 or more")] = 1e-4
    warmup_epochs: Annotated[float, Field(ge=0, description="epochs of linear warm-up, 0 or more")] = 0.0
    schedule: Annotated[Literal["cosine", "step"], Field(
        description="the learning rate after warm-up: half a cosine to zero, or steps down")] = "cosine"
    step_epochs: Annotated[Tuple[Annotated[int, Field(ge=1)], ...], Field(
        description="schedule step: a list of the epochs after which the rate falls, such as [30, 60, 90]")] = ()
    step_factor: Annotated[float, Field(
        gt=0, lt=1, description="schedule step: what the rate is multiplied by, in (0, 1)")] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="in [0, 1)")] = 0.0
    mixup: Annotated[float, Field(
        ge=0, description="alpha of the Beta distribution that images are mixed by; 0: not mixed")] = 0.0
    dtype: Annotated[Literal["float32", "float16"], Field(
        description="what the network computes in; float16, on a GPU, updates float32 masters")] = "float32"
    teacher: Annotated[Optional[str], Field(
        min_length=1, description="the network to learn from: the prefix of a saved one, a GluonCV name (with its "
                                  "published weights), or for finetune `dense`, the experiment's own")] = None
    teacher_weight: Annotated[float, Field(
        gt=0, le=1, description="the teacher's part of the loss, in (0, 1]")] = 0.5
    teacher_temperature: Annotated[float, Field(
        gt=0, description="what both networks' outputs are divided by to compare them, above 0")] = 1.0

    _lists = field_validator("step_epochs", mode="before")(_listed)

    @property
    def all_epochs(self) -> int:
        """The length of the training in epochs."""
        return self.epochs

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        n = self.all_epochs
        if 0 < n < self.warmup_epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs:g} is longer than the whole training; "
                             f"set it to at most epochs: {n}")
        steps, fields = list(self.step_epochs), type(self).model_fields
        if self.schedule == "step" and not steps:
            raise ValueError("schedule: step needs step_epochs; set it to the epochs after which the rate falls, such "
                             "as [30, 60, 90]")
        for key in ("step_epochs", "step_factor"):
            if self.schedule == "cosine" and getattr(self, key) != fields[key].default:
                raise ValueError(f"{key} is for schedule: step, but the schedule is cosine; set schedule to step")
        if any(a >= b for a, b in zip(steps, steps[1:])):
            raise ValueError(f"step_epochs: {steps} should rise")
        if steps and 0 < n <= steps[-1]:
            raise ValueError(f"step_epochs: {steps} goes beyond the training, which ends after epoch {n}")
        if steps and steps[0] < self.warmup_epochs:
            raise ValueError(f"step_epochs: {steps} begins before the end of warmup_epochs: {self.warmup_epochs:g}")
        for key in ("teacher_weight", "teacher_temperature"):
            if self.teacher is None and getattr(self, key) != fields[key].default:
                raise ValueError(f"{key}: {getattr(self, key):g} without a teacher; set teacher to a network")
        return self


class Train(Recipe):
    """Training of the dense network."""

    YOUNGER: ClassVar[Set[str]] = Recipe.YOUNGER | {"last_gamma_zero"}

    last_gamma_zero: Annotated[bool, Field(
        description="true: the last batch norm of every residual branch starts with scales of 0")] = False

    @model_validator(mode="after")
    def _check_teacher(self) -> Train:
        if self.teacher == "dense":
            raise ValueError("teacher: dense is the network that this very training makes; name another, or set "
                             "finetune.teacher")
        return self


class Finetune(Recipe):
    """Training of the pruned network: the keys of `train`, and epochs to make up for what others saw."""

    epochs: Annotated[int, Field(ge=0, description="passes over the training images, 0 or more")] = 0
    extra_epochs: Annotated[int, Field(
        ge=0, description="epochs on top of `epochs`, for a comparison at equal images")] = 0

    @property
    def all_epochs(self) -> int:
        """The length of the training in epochs."""
        return self.epochs + self.extra_epochs


class Prune(_Section):
    """Which channels go, and how. Keys of the other methods are ignored by a method."""

    ONLY_OF: ClassVar[Dict[str, Set[str]]] = {
        "gcp": {"score", "iterations", "schedule", "regularise_epochs", "recover_epochs", "lr", "recover_lr",
                "momentum", "lam", "max_cut"},
        "uniform": {"criterion"}}
    YOUNGER: ClassVar[Set[str]] = {"budget", "latency_model", "target_ms", "target_images_per_second", "max_cut"}

    method: Annotated[Literal["none", "gcp", "uniform"], Field(description="the pruning method")] = "none"
    objective: Annotated[Literal["macs", "params", "latency"], Field(
        description="the cost that a channel is weighed against, and that the target is about")] = "macs"
    budget: Annotated[Optional[Literal["macs", "params", "latency"]], Field(
        description="the cost that the target is about, where that is not the objective")] = None
    target: Annotated[float, Field(
        gt=0, le=1, description="the fraction of the cost to keep, in (0, 1]")] = 1.0
    target_ms: Annotated[Optional[float], Field(
        gt=0, description="in place of target, for latency: milliseconds for a batch")] = None
    target_images_per_second: Annotated[Optional[float], Field(
        gt=0, description="in place of target, for latency: throughput")] = None
    latency_model: Annotated[Optional[str], Field(
        min_length=1, description="a model that `scripts/latency.py fit` wrote")] = None
    score: Annotated[Literal["paper", "relative", "taylor"], Field(
        description="gcp: what a channel is ranked by")] = "taylor"
    round_to: Annotated[Optional[int], Field(
        ge=1, description="every final width is a multiple of this, 1 or more; auto: the model's granularity")] = 8
    criterion: Annotated[Literal["l1", "random"], Field(
        description="uniform: which channels of a group go")] = "l1"
    iterations: Annotated[int, Field(ge=1, description="gcp: number of steps to the target, 1 or more")] = 4
    schedule: Annotated[Literal["equal", "geometric"], Field(
        description="gcp: steps of equal cost (the paper's) or of equal ratio")] = "geometric"
    max_cut: Annotated[Optional[float], Field(
        gt=0, lt=1, description="gcp: the largest part of a group that may go in one iteration, in (0, 1)")] = None
    regularise_epochs: Annotated[float, Field(
        gt=0, description="gcp: epochs with penalty per iteration, above 0")] = 1.0
    recover_epochs: Annotated[float, Field(
        ge=0, description="gcp: epochs without penalty per iteration, 0 or more")] = 1.0
    lr: Annotated[float, Field(gt=0, description="gcp: learning rate with penalty, above 0")] = 0.01
    recover_lr: Annotated[float, Field(
        gt=0, description="gcp: learning rate without penalty, above 0")] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1, description="gcp: in [0, 1)")] = 0.9
    lam: Annotated[Tuple[Annotated[float, Field(ge=0)], ...], Field(
        min_length=1,
        description="gcp: a list of penalties, such as [0.1]; the best on validation loss is taken")] = (0.1,)

    _lists = field_validator("lam", mode="before")(_listed)

    @field_validator("round_to", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @property
    def counted(self) -> str:
        """The cost that the target is about."""
        return self.budget or self.objective

    @model_validator(mode="after")
    def _check(self) -> Prune:
        targets = {key for key in ("target", "target_ms", "target_images_per_second")
                   if key in self.model_fields_set and getattr(self, key) is not None}
        if self.counted != "latency" and targets - {"target"}:
            raise ValueError(f"{min(targets - {'target'})} is for latencies, but the target is about {self.counted}; "
                             "set prune.objective or prune.budget to latency")
        if len(targets) > 1:
            raise ValueError(f"{' and '.join(sorted(targets))} are the same thing said twice; keep one of them")
        if self.latency_model is None and "latency" in (self.objective, self.budget):
            raise ValueError("latency needs a model of it; set prune.latency_model to a file that `scripts/latency.py "
                             "fit` wrote")
        if self.latency_model is None and self.round_to is None:
            raise ValueError("round_to: auto is a latency model's granularity; set prune.latency_model to a file that "
                             "`scripts/latency.py fit` wrote, or prune.round_to to a number")
        if self.method == "none" and self.target != 1:
            raise ValueError(f"target: {self.target:g} cannot be met by method: none; "
                             "set prune.method to gcp or uniform")
        if self.method != "none" and not targets:
            raise ValueError(f"method: {self.method} needs a target; "
                             "set prune.target to the fraction of the cost to keep")
        return self


class Throughput(_Section):
    """How inference speed is measured."""

    batch: Annotated[int, Field(ge=1, description="images in a batch")] = 64
    repeats: Annotated[int, Field(ge=1, description="timed batches, of which the median counts")] = 20


class Paper(_Section):
    """Which row of the paper's tables an experiment stands in. It decides no number and is in no fingerprint."""

    table: Annotated[Optional[Literal["table1", "table2", "table3", "table4", "table5", "table6", "figure1"]], Field(
        description="one of the paper's tables 1 to 6, or its Figure 1")] = None
    level: Annotated[int, Field(
        ge=0, description="the table's block of rows, 1 for the lightest cut; 0: what others are compared with")] = 0
    chosen: Annotated[bool, Field(description="true: the level's target is not published; we chose it")] = False
    starts_from: Annotated[Optional[str], Field(
        min_length=1, description="the configuration whose final network model.name is")] = None


class Config(_Section):
    """One experiment: everything that decides its numbers, and where they go."""

    UNCOUNTED: ClassVar[Set[str]] = {"tensorboard", "workers", "gpus", "paper"}  # `_hash` adds the number of workers

    name: Annotated[str, Field(description="letters, digits and . _ + - only: it names the run's folder")]
    scale: Annotated[Literal["paper", "reduced", "smoke"], Field(
        description="how near the experiment is to the paper's: paper, reduced or smoke")]
    seed: Annotated[int, Field(ge=0, lt=2 ** 31, description="0 or more")] = 0
    threads: Annotated[int, Field(ge=0, description="processor threads; 0: one per physical core")] = 0
    workers: Annotated[Optional[int], Field(
        ge=1, description="processes that share every batch; by default one for each of gpus")] = None
    gpus: Annotated[Tuple[Annotated[int, Field(ge=0)], ...], Field(
        description="a list of GPU numbers, such as [0, 1]; empty: the first if there is one, else the CPU")] = ()
    output: Annotated[str, Field(
        min_length=1, description="the folder in which run folders are made")] = "results/runs"
    tensorboard: Annotated[bool, Field(
        description="true: training's curves also as TensorBoard events, beside log.jsonl")] = False
    model: Annotated[Model, Field(description="at least model.name")]
    data: Annotated[Data, Field(description="at least data.name")]
    train: Annotated[Train, Field(description="at least train.epochs")]
    prune: Prune = Prune()
    finetune: Finetune = Finetune()
    throughput: Throughput = Throughput()
    paper: Paper = Paper()

    _lists = field_validator("gpus", mode="before")(_listed)

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not re.fullmatch(r"\w[\w.+-]*", value, flags=re.ASCII):
            raise ValueError("should start with a letter or digit and hold only what suits a folder's name")
        return value

    @property
    def n_threads(self) -> int:
        """The number of threads to compute with: `threads`, or one per physical core."""
        return self.threads or physical_cores()

    @property
    def n_workers(self) -> int:
        """The number of processes that share every batch: it decides what batch norm sees."""
        return self.workers or max(1, len(self.gpus))

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.train.last_gamma_zero and (self.model.pretrained or self.model.is_saved):
            raise ValueError("train.last_gamma_zero: true is for a network that starts from random weights, but "
                             f"{self.model.name!r} brings its own; set it to false")
        if len(set(self.gpus)) < len(self.gpus):
            raise ValueError(f"gpus: {list(self.gpus)} names a GPU twice; each takes one worker")
        if self.gpus and self.n_workers % len(self.gpus):
            raise ValueError(f"workers: {self.workers} cannot be spread over the {len(self.gpus)} gpus of every "
                             f"machine; set it to a multiple of {len(self.gpus)}, or leave it out")
        if self.data.batch % self.n_workers:
            raise ValueError(f"data.batch: {self.data.batch} images cannot be divided evenly among {self.n_workers} "
                             f"workers; set it to a multiple of {self.n_workers}")
        return self

    def fingerprint(self) -> str:
        """12 hex digits that change with any key that decides a number: not `name`, `output`, other methods' keys."""
        others = set().union(*(keys for method, keys in Prune.ONLY_OF.items() if method != self.prune.method))
        unset = self.unset()
        prune = {**unset["prune"], **dict.fromkeys(others, True)}
        apart = {"name": True, "output": True, "prune": prune}
        return self._hash(self.model_dump(mode="json", exclude={**unset, **apart}))

    def dense_fingerprint(self) -> str:
        """12 hex digits that two experiments share when they start from the same trained dense network."""
        shared = {"scale", "seed", "threads", "model", "data", "train"}
        return self._hash(self.model_dump(mode="json", include=shared, exclude=self.unset()))

    def _hash(self, values: dict) -> str:
        # However they were asked for; those of one process have the fingerprints from before there were several.
        return _hash(values if self.n_workers == 1 else {**values, "workers": self.n_workers})


def _hash(values: dict) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def physical_cores() -> int:
    """Number of physical cores that this process may run on (hyper-threads of one core count once)."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:  # not Linux, or hidden in this container: count every logical processor
            cores.add(str(cpu))
    return max(1, len(cores))


# Loading

def load(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file, its chain of `base:` files under it and `a.b=c` overrides over it.

    `name` defaults to the file's stem. A relative `base` starts from the file that says it; `data.root`,
    `model.name` and `output` from the working directory. `{seed}` and `*` in `model.name` (a finished run's folder
    ends in its seed and fingerprint) are filled in, if there is such a run. UserError: whatever is wrong with them.
    """
    path = Path(path)
    layers = [("defaults", {"name": path.stem}), *_read_chain(path, ())]
    layers += [(f"--set {text}", _parse_override(text)) for text in overrides]
    values: dict = {}
    for _, layer in layers:
        values = _merged(values, layer)
    try:
        return _with_start(Config.model_validate(values))
    except ValidationError as error:
        # A misspelt key comes with the report that the right one is missing: the misspelling explains both.
        first = min(error.errors(), key=lambda e: e["type"] == "missing")
        raise UserError(_explain(first, layers, str(path))) from None


def _with_start(cfg: Config) -> Config:
    """The configuration with the one saved network that a pattern in `model.name` means; as it is, if none is there."""
    if not cfg.model.is_pattern:
        return cfg
    found = sorted(glob.glob(cfg.model.name.replace("{seed}", str(cfg.seed)) + "-symbol.json"))
    if len(found) > 1:
        raise UserError(f"model.name: {cfg.model.name} means several saved networks: {', '.join(found)}; name one with "
                        "--set model.name=PREFIX")
    if not found:
        return cfg
    name = found[0][:-len("-symbol.json")]
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"name": name})})


_Layer = Tuple[str, dict]  # where it was written, and the nested keys written there


def load_all(path: str | os.PathLike, overrides: Sequence[str] = (),
             seeds: Optional[Sequence[int]] = None) -> list[tuple[Path, list[str], Config]]:
    """Every experiment of a file or folder, at every seed (default: its own): file, overrides, configuration.

    In a folder, files whose names start with `_` are bases for others and no experiments. Seeds vary slowest,
    so that a killed reproduction has whole seeds. UserError: no such path, none in it, a faulty one.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a configuration or a folder of them")
    files = sorted(p for p in path.glob("*.yaml") if not p.name.startswith("_")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds no configuration (*.yaml)")
    return [(file, extra, load(file, extra)) for seed in (seeds or [None]) for file in files
            for extra in [[*overrides, *([] if seed is None else [f"seed={seed}"])]]]


def section(kind: type[_Section], values: dict) -> Any:
    """One section from values given on a command line. UserError: what is wrong with them."""
    try:
        return kind.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        raise UserError(f"{where + ': ' if where else ''}{_shown(first['input'])}: {first['msg']}") from None


def use_threads(n: int, n_processes: int = 1) -> None:
    """Have MXNet compute with `n` threads (0: OMP_NUM_THREADS if set, else a physical core for each).

    The cores are divided among `n_processes` on this machine. Only effective before MXNet is imported.
    """
    if n:
        os.environ["OMP_NUM_THREADS"] = str(n)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, physical_cores() // n_processes)))


def use_gpu(gpus: Sequence[int], local_rank: int = 0) -> None:
    """Have MXNet see one GPU only, of number `gpus[local_rank]`; all if there are no `gpus`.

    Numbers count within CUDA_VISIBLE_DEVICES where that is set. Only effective before MXNet is imported. UserError: no
    such GPU there.
    """
    if gpus:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if visible and gpus[local_rank] >= len(visible):
            raise UserError(f"gpus: there is no GPU {gpus[local_rank]} among CUDA_VISIBLE_DEVICES={','.join(visible)}; "
                            f"numbers up to {len(visible) - 1} are")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[gpus[local_rank]] if visible else str(gpus[local_rank])


def shape(text: str) -> tuple[int, int, int]:
    """`3,224,224` from a command line as (channels, height, width). UserError: anything else."""
    parts = text.split(",")
    if len(parts) != 3 or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
        raise UserError(f"--input {text}: should be channels,height,width such as 3,224,224")
    return tuple(int(p) for p in parts)


def positive(kind: type) -> Callable[[str], Any]:
    """For a command line: reads an int or a float above 0; the parser reports anything else with the option's name."""
    def number(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if 0 < kind(text) < math.inf:
                return kind(text)
        raise argparse.ArgumentTypeError(f"'{text}' should be a {'whole ' * (kind is int)}number above 0")
    return number


def natural(text: str) -> int:
    """For a command line: reads a whole number, 0 or more; the parser reports anything else with the option's name."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"'{text}' should be a whole number, 0 or more")
    return int(text)


def seeds(text: str) -> list[int]:
    """`0,1,2` from a command line as numbers. UserError: anything else."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"--seeds {text}: should be whole numbers such as 0,1,2")
    return [int(p) for p in text.split(",")]


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: 1e-4 is a number (YAML 1.1 reads text), and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2020-99-99
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{source}{place}: not valid YAML: {problem}") from None


def _read_chain(path: Path, above: tuple[Path, ...]) -> list[_Layer]:
    """The file at `path` as a layer, preceded by those of its bases; `above` are the files that led here."""
    here = path.resolve()
    if here in above:
        circle = " -> ".join(p.name for p in (*above, here))
        raise UserError(f"{path}: its base files form a circle: {circle}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; a configuration is a YAML file in UTF-8") from None
    except OSError as error:
        led_here = f" (the base of {above[-1]})" if above else ""
        raise UserError(f"{path}{led_here}: cannot be read: {error.strerror}; "
                        "give the path of a YAML file") from None
    values = _parse_yaml(text, str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds {_shown(values)}; a configuration is made of `key: value` lines")
    base = values.pop("base", None)
    if base is None:
        return [(str(path), values)]
    if not isinstance(base, str):
        raise UserError(f"{path}: base: {_shown(base)} should be the path of one configuration file")
    return [*_read_chain(path.parent / base, (*above, here)), (str(path), values)]


def _parse_override(text: str) -> dict:
    dotted, equals, value = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        raise UserError(f"--set {text}: should look like section.key=value, such as prune.target=0.5")
    if keys == ["base"]:
        raise UserError(f"--set {text}: base belongs in a file; give that file as the configuration instead")
    nested = _parse_yaml(value, f"--set {text}")
    for key in reversed(keys):
        nested = {key: nested}
    return nested


def _merged(under: Any, over: Any) -> Any:
    """`over` laid on `under`: sections merge key by key, everything else is replaced."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return {**under, **{key: _merged(under.get(key), value) for key, value in over.items()}}


# Explaining what is wrong

def _explain(error: Any, layers: list[_Layer], path: str) -> str:
    """One line about a pydantic error: where the key was written, the key, the value, what it should be."""
    keys = tuple(key for key in error["loc"] if key != "[key]")
    kind, value = error["type"], _shown(error["input"])
    if kind in ("tuple_type", "too_short", "too_long") or (kind == "missing" and isinstance(keys[-1], int)):
        keys = keys[:1 + max(n for n, key in enumerate(keys) if isinstance(key, str))]
        value = _shown(list(error["input"]) if isinstance(error["input"], tuple) else error["input"])
        return f"{_source(layers, keys, path)}: {'.'.join(keys)}: {value} does not fit: {_hint(keys)}"
    dotted = ".".join(str(key) for key in keys)
    source = path if kind == "missing" else _source(layers, keys, path)
    hint = _hint(keys)
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{source}: {dotted}: no such key; {_nearest(keys)}"
    if kind == "missing":
        return f"{source}: {dotted} is missing" + (f": {hint}" if hint else "")
    if kind == "value_error" and isinstance(error["input"], dict):  # a combination; it says the values
        return f"{source}: {dotted}: {error['ctx']['error']}" if keys else f"{path}: {error['ctx']['error']}"
    if kind in ("model_type", "model_attributes_type"):
        known = ", ".join(_fields(keys))
        return f"{source}: {dotted}: {value} should be a section of its own, with keys {known}"
    should = str(error["ctx"]["error"]) if kind == "value_error" else error["msg"].replace("Input ", "")
    return f"{source}: {dotted}: {value} {should[:1].lower()}{should[1:]}" + (f" ({hint})" if hint else "")


def _source(layers: list[_Layer], keys: tuple[Union[str, int], ...], path: str) -> str:
    """Where the value at `keys` was written last; an item of a list counts as written with the list."""
    for source, layer in reversed(layers):
        found: Any = layer
        for key in keys:
            if isinstance(key, int) and isinstance(found, list):
                return source
            if not isinstance(found, dict) or key not in found:
                break
            found = found[key]
        else:
            return path if source == "defaults" else source
    return path


def _fields(keys: tuple[Union[str, int], ...]) -> dict[str, Any]:
    """The known fields of the section at `keys`; none where there is no such section."""
    section: Any = Config
    for key in keys:
        field = section.model_fields.get(key)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return {}
    return section.model_fields


def _hint(keys: tuple[Union[str, int], ...]) -> str | None:
    named = tuple(key for key in keys if isinstance(key, str))
    field = _fields(named[:-1]).get(named[-1]) if named else None
    return field.description if field else None


def _all_keys() -> Iterator[str]:
    for key in Config.model_fields:
        yield key
        yield from (f"{key}.{name}" for name in _fields((key,)))


def _nearest(keys: tuple[Union[str, int], ...]) -> str:
    """What may have been meant: a key of the same section, else of another, else all the section's keys."""
    prefix = "".join(f"{key}." for key in keys[:-1])
    siblings = list(_fields(keys[:-1]))
    written = str(keys[-1])
    near = difflib.get_close_matches(written, siblings, n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    leaves = {key.rpartition(".")[2]: key for key in reversed(list(_all_keys()))}
    near = difflib.get_close_matches(written, leaves, n=1)
    if near:
        return f"did you mean {leaves[near[0]]}?"
    return f"{'the keys of ' + prefix[:-1] if prefix else 'the keys'} are {', '.join(siblings)}"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    if isinstance(value, float) and not math.isfinite(value):
        text = f"{value} (not a finite number)"
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines())
