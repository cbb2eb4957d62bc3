"""Experiment configurations: a YAML file in, a frozen, fully checked `Config` out.

A file may build on another (`base: other.yaml`), and the command line may set single keys (`--set a.b=c`).
Any mistake in them is reported as one `UserError` line: the place, the key, the value, and what would be valid.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import glob
import hashlib
import json
import operator
import os
import re
from pathlib import Path

# Optional, not `X | None`: pydantic evaluates the annotations, and Python 3.9 cannot evaluate that form.
from typing import (
    Annotated,
    Any,
    ClassVar,
    Dict,
    Iterable,
    Iterator,
    Literal,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, create_model, field_validator

from gcp import storage
from gcp.backend.onnx_files import external_files, is_onnx
from gcp.cost.base import COSTS
from gcp.data.datasets import DATASETS, Data
from gcp.errors import UserError
from gcp.methods.base import METHODS, MethodOptions
from gcp.options import Options, changed, described, explained, listed, shown
from gcp.registry import Registry
from gcp.search.options import Range, Search
from gcp.storage import expanded, parse_yaml, read_yaml
from gcp.train.options import Finetune, Train

SCHEMA = 2  # version of the fingerprints: incremented when a default or the meaning of a key changes


def _names(registry: Registry) -> Any:
    """The type of a key that names an entry of a registry."""
    return Literal[tuple(registry)]


Costs = _names(COSTS)


class Model(Options):
    """The network to start from."""

    FILES: ClassVar[Set[str]] = {"name"}

    name: str = Field(
        min_length=1,
        description="a GluonCV name, the path of an ONNX file, or the path prefix of a saved network; a GluonCV name "
        "may be followed by a fraction of its width, as in `resnet18_v1b@0.5`",
    )
    pretrained: bool = Field(False, description="true: start from GluonCV's published weights")
    weights: Optional[str] = Field(
        None,
        min_length=1,
        description="with pretrained: the file of GluonCV's published weights, for machines that cannot download it",
    )
    new_head: bool = Field(
        False, description="true: give a saved network a new output layer with as many classes as the data have"
    )

    # Where the file lies does not affect results: its hash has to be the published one.
    UNCOUNTED: ClassVar[Set[str]] = {"weights"}

    @property
    def is_saved(self) -> bool:
        """Whether `name` is an ONNX file or a saved network; no GluonCV name contains a slash."""
        is_path = "/" in self.name or os.sep in self.name or is_onnx(self.name)
        return is_path or storage.network_files(self.name)[0].is_file()

    def is_file(self, key: str) -> bool:
        """Whether `name` is a file: a GluonCV name is not."""
        return self.is_saved

    @property
    def is_pattern(self) -> bool:
        """Whether `name` is a pattern that no saved network matches yet."""
        return self.is_saved and ("*" in self.name or "{seed}" in self.name)

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        saved = f"{self.name!r} is a saved network, which brings its own weights"
        if self.pretrained and self.is_saved:
            yield f"pretrained: true needs a GluonCV name, but {saved}; set model.pretrained to false"
        if self.weights is not None and not self.pretrained:
            yield (
                "weights is for a file of GluonCV's published weights; set model.pretrained to true (for weights of "
                "your own, give the prefix of a saved network as model.name)"
            )
        if self.new_head and not self.is_saved:
            named = f"{self.name!r} is a GluonCV name, whose output layer fits the data anyway"
            yield f"new_head: true needs a saved network, but {named}; set model.new_head to false"


TARGETS = ("target", "target_ms", "target_images_per_second")  # alternative ways to give the target


class _Prune(Options):
    """Which channels are removed, and how. Every method has a section of options; only the chosen method's are used."""

    method: _names(METHODS) = Field("none", description="the pruning method")
    objective: Costs = Field(
        "macs", description="the cost that a channel's importance is weighed against, and that the target applies to"
    )
    budget: Optional[Costs] = Field(None, description="the cost that the target applies to, if not the objective")
    target: float = Field(1.0, gt=0, le=1, description="the fraction of the cost to keep, in (0, 1]")
    target_ms: Optional[float] = Field(
        None, gt=0, le=1e6, description="instead of target, for latency: milliseconds per batch"
    )
    target_images_per_second: Optional[float] = Field(
        None, gt=0, le=1e9, description="instead of target, for latency: throughput in images per second"
    )
    latency_model: Optional[str] = Field(
        None, min_length=1, description="the file of a latency model, written by `scripts/latency.py fit`"
    )
    device: Optional[str] = Field(
        None, min_length=1, description="a YAML file that describes a device, which need not exist yet"
    )
    round_to: Optional[int] = Field(
        8,
        ge=1,
        le=65536,
        description="every final width is a multiple of this, 1 or more; auto or null: the latency model's granularity",
    )
    statistics_images: int = Field(
        512,
        ge=0,
        le=10**9,
        description="training images from which batch norm's running statistics are recomputed after every cut, in "
        "whole batches; 0: the statistics from before the cut are kept",
    )
    reconstruction_images: int = Field(
        0,
        ge=0,
        le=10**6,
        description="training images on which every layer's weights are fitted by least squares to its previous "
        "outputs after a cut, in whole batches; 0: the weights are left as they are",
    )
    moved: Literal["mean", "silenced"] = Field(
        "mean",
        description="the constant that replaces a removed channel in the layers that read it; mean: the mean of its "
        "output, assumed to be normally distributed after its batch norm; silenced: its output once its scale is zero",
    )

    FILES: ClassVar[Set[str]] = {"latency_model", "device"}

    @field_validator("round_to", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @property
    def counted(self) -> str:
        """The cost that the target applies to."""
        return self.budget or self.objective

    @property
    def is_timed(self) -> bool:
        """Whether the target applies to a cost that is measured with a clock."""
        return getattr(COSTS[self.counted], "is_timed", False)

    @property
    def options(self) -> MethodOptions:
        """The options of the method in use."""
        return getattr(self, self.method)

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        targets = {key for key in TARGETS if key in self.model_fields_set and getattr(self, key) is not None}
        for key in sorted(targets - {"target"}) if not self.is_timed else ():
            wrong = f"{key} is for latency, but the target applies to {self.counted}"
            yield f"{wrong}; set prune.objective or prune.budget to latency"
        # The whole configuration, as a run's folder holds it, also states the default target, which asks for nothing.
        asked = targets - {"target"} if self.target == 1 else targets
        if len(asked) > 1:
            yield f"{' and '.join(sorted(asked))} are alternatives; keep only one of them"
        needs = {key for name in (self.objective, self.counted) for key in COSTS.options[name].model_fields}
        fix = "set prune.latency_model to a file that `scripts/latency.py fit` wrote"
        if self.latency_model is None and "latency_model" in needs:
            yield f"latency needs a latency model; {fix}"
        if self.device is None and "device" in needs:
            yield "device needs a file that describes it; set prune.device to one, such as configs/device.yaml"
        if self.latency_model is None and self.round_to is None:
            yield f"round_to: auto needs a latency model for its granularity; {fix}, or prune.round_to to a number"
        if not self.options.PRUNES and self.target != 1:
            others = " or ".join(name for name in METHODS if METHODS.options[name].PRUNES)
            yield f"target: {self.target:g} cannot be met by method: {self.method}; set prune.method to {others}"
        if self.options.PRUNES and not targets:
            yield f"method: {self.method} needs a target; set prune.target to the fraction of the cost to keep"


Prune = create_model(
    "Prune",
    __base__=_Prune,
    **{name: (kind, Field(default=kind(), description=f"options of {name}")) for name, kind in METHODS.options.items()},
)
Prune.__doc__ = _Prune.__doc__  # the class that `create_model` makes has none


class Throughput(Options):
    """How inference speed is measured."""

    batch: int = Field(64, ge=1, le=65536, description="images per batch")
    repeats: int = Field(20, ge=1, le=10**5, description="minimum number of timed batches; the median is reported")


class Paper(Options):
    """The row of the paper's tables that an experiment belongs to. It affects neither results nor fingerprints."""

    FILES: ClassVar[Set[str]] = {"starts_from"}

    table: Optional[Literal["table1", "table2", "table3", "table4", "table5", "table6", "figure1"]] = Field(
        None, description="one of the paper's tables 1 to 6, or its Figure 1"
    )
    level: int = Field(
        0, ge=0, le=100, description="the table's block of rows, 1 for the lightest pruning; 0: rows to compare with"
    )
    chosen: bool = Field(False, description="true: this level's target was not published but chosen for this project")
    starts_from: Optional[str] = Field(
        None, min_length=1, description="the configuration whose final network model.name refers to"
    )


class Config(Options):
    """One experiment: everything that determines its results, and where they are written."""

    UNCOUNTED: ClassVar[Set[str]] = {"tensorboard", "workers", "gpus", "paper", "throughput"}
    FOLDERS: ClassVar[Set[str]] = {"output"}

    name: str = Field(description="part of the run folder's name: letters, digits and . _ + - only")
    scale: Literal["paper", "reduced", "smoke"] = Field(
        description="how close the experiment is to the paper's: paper, reduced or smoke"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="the random seed, 0 or more")
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads; 0: as many as OMP_NUM_THREADS says, or else one per physical core"
    )
    workers: Optional[int] = Field(
        None, ge=1, le=1024, description="processes that share each batch; by default one per GPU of gpus, else one"
    )
    gpus: Tuple[Annotated[int, Field(ge=0, le=1023)], ...] = Field(
        (), description="a list of GPU numbers, such as [0, 1]; empty: the first GPU if there is one, else the CPU"
    )
    output: str = Field("results/runs", min_length=1, description="the folder in which run folders are created")
    tensorboard: bool = Field(
        False, description="true: also write training curves as TensorBoard events, beside log.jsonl"
    )
    model: Model = Field(description="at least model.name")
    data: SerializeAsAny[Data] = Field(description="at least data.name")
    train: Train = Field(description="at least train.epochs")
    prune: Prune = Prune()
    finetune: Finetune = Finetune()
    search: Search = Search()
    throughput: Throughput = Throughput()
    paper: Paper = Paper()

    _lists = field_validator("gpus", mode="before")(listed)

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not re.fullmatch(r"\w[\w.+-]*", value, flags=re.ASCII):
            raise ValueError("should start with a letter, a digit or _, and contain only these and . + -")
        return value

    @property
    def n_workers(self) -> int:
        """The number of processes that share each batch. Batch norm normalises each process's part separately."""
        return self.workers or max(1, len(self.gpus))

    def mistakes(self) -> Iterator[str]:
        """See `Options`."""
        if self.train.last_gamma_zero and (self.model.pretrained or self.model.is_saved):
            wrong = f"is for a network that starts from random weights, but {self.model.name!r} brings its own"
            yield f"train.last_gamma_zero: true {wrong}; set it to false"
        if not self.data.LABELLED and not (self.model.pretrained or self.model.is_saved):
            wrong = f"takes its labels from the network, but {self.model.name!r} starts from random weights"
            yield f"data.name: {self.data.name} {wrong}; set model.name to a saved network, or model.pretrained to true"
        if len(set(self.gpus)) < len(self.gpus):
            yield f"gpus: {list(self.gpus)} names a GPU twice, but each GPU takes only one worker"
        if self.gpus and self.n_workers % len(self.gpus):
            wrong = f"cannot be spread evenly over the {len(self.gpus)} gpus of each machine"
            yield f"workers: {self.workers} {wrong}; set it to a multiple of {len(self.gpus)}, or leave it out"
        if self.data.batch % self.n_workers:
            wrong = f"images cannot be divided evenly among {self.n_workers} workers"
            yield f"data.batch: {self.data.batch} {wrong}; set it to a multiple of {self.n_workers}"
        yield from self._search_mistakes()

    def _search_mistakes(self) -> Iterator[str]:
        """Mistakes in the search's parameters, given the sections that they refer to."""
        known, method, scope = self.searchable(), self.prune.method, self.search.scope
        lams = getattr(self.prune.options, "lam", None)
        if self.search.per_iteration and isinstance(lams, tuple) and len(lams) > 1:
            fix = "give one value there, and list all as choices in search.parameters"
            yield f"prune.{method}.lam: {list(lams)} is already a search; {fix}"
        judged = f"prune.{method}.recover_epochs" if scope == "iteration" else "finetune.epochs"
        stops_early = known and self.search.trials and self.search.pruner != "none"
        if stops_early and judged not in self.search.parameters and operator.attrgetter(judged)(self) <= 1:
            wrong = "compares trials after each epoch but the last, and they have only one"
            yield f"search.pruner: {self.search.pruner} {wrong}; raise {judged}, or set search.pruner to none"
        for name, tried in self.search.parameters.items():
            place = f"search.parameters.{name}"
            if not known:
                fix = "set search.scope to run, or prune.method to gcp"
                yield f"search.scope: iteration, but method: {method} has no iterations to search; {fix}"
            elif name not in known:
                alike = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
                near = [*difflib.get_close_matches(name, known, n=1), *alike]
                hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
                yield f"{place}: not a key that trials of method: {method} and scope: {scope} can choose; {hint}"
            elif isinstance(own := operator.attrgetter(name)(self), tuple) and len(own) > 1:
                yield f"{name}: {list(own)} has several values, but a trial chooses only one; give one"
            elif tried.is_range and known[name] is None:
                yield f"{place}: a range is only for numbers; give choices"
            elif tried.is_range and known[name] is int and not all(isinstance(end, int) for end in tried.ends):
                yield f"{place}: low: {tried.low} and high: {tried.high} should be whole numbers"
            else:
                for value in tried.ends:
                    try:
                        self.with_values({name: value})
                    except ValidationError as error:
                        yield f"{place}: {shown(value)} does not fit: {explained(error)}"

    def searchable(self) -> Dict[str, Optional[type]]:
        """The keys whose values trials can choose, with int or float for a key that holds numbers, else None.

        All trials start from the same dense network and are compared at the same budget, so the keys of these two are
        not included.
        """
        own, section = type(self.prune.options).model_fields, f"prune.{self.prune.method}."
        if self.search.scope == "iteration":
            keys = {section + key: own[key] for key in own if key in self.prune.options.PER_ITERATION}
        else:
            renewed = ("statistics_images", "reconstruction_images", "moved")
            keys = {section + key: field for key, field in own.items()}
            keys |= {f"prune.{key}": Prune.model_fields[key] for key in renewed}
            keys |= {f"finetune.{key}": f for key, f in Finetune.model_fields.items() if key not in Finetune.FILES}
        return {name: _number(field.annotation) for name, field in keys.items()}

    def search_space(self) -> Dict[str, Range]:
        """The range or choices that each parameter of the search is drawn from; ranges of float keys get float ends."""
        known, space = self.searchable(), dict(self.search.parameters)
        for name, tried in space.items():
            if tried.is_range and known[name] is float:
                space[name] = changed(tried, {"low": float(tried.low), "high": float(tried.high)})
        return space

    def values(self, names: Iterable[str]) -> Dict[str, Any]:
        """The values at dotted keys; for a list, which a trial sets to a single value, the first item."""
        found = {name: operator.attrgetter(name)(self) for name in names}
        return {name: value[0] if isinstance(value, tuple) and value else value for name, value in found.items()}

    def with_values(self, values: Dict[str, Any]) -> Config:
        """The configuration with a trial's values, by dotted key. ValidationError: a value is not valid."""
        parts: Dict[str, Dict[str, Any]] = {"prune": {}, "finetune": {}}
        for name, value in values.items():
            section, _, key = name.partition(".")
            parts[section][key] = value
        return self.model_copy(update={key: changed(getattr(self, key), of) for key, of in parts.items() if of})

    def fingerprint(self) -> str:
        """12 hex digits that change with everything that determines results.

        They cover every key that is not at its default, except names, locations and the options of other methods, and
        the contents of the files that the configuration names. UserError: one of these files is missing.
        """
        others = {name: True for name in METHODS if name != self.prune.method}
        unused = {} if self.search.trials else {"search": True}
        return self._hash({"name": True, "output": True, "prune": others, **unused})

    def dense_fingerprint(self, contents: bool = True) -> str:
        """12 hex digits that two experiments share when they start from the same trained dense network.

        Without `contents`, files are represented by their names, since they may not exist yet.
        """
        apart = {"name", "output", "prune", "finetune", "search", "throughput"}
        return self._hash(dict.fromkeys(apart, True), contents)

    def _hash(self, apart: Dict[str, Any], contents: bool = True) -> str:
        values = self.model_dump(mode="json", exclude_defaults=True, exclude=apart)
        values = {"schema": SCHEMA, "workers": self.n_workers, **_counted(self, values, contents)}
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _number(annotation: Any) -> Optional[type]:
    """The type of number, int or float, that a key of this type holds, also in a list or an Optional; None: neither."""
    if annotation in (int, float):
        return annotation
    of = {_number(part) for part in get_args(annotation)} - {None}
    return of.pop() if len(of) == 1 and get_origin(annotation) is not Literal else None


def _counted(section: Options, values: Dict[str, Any], contents: bool, place: str = "") -> Dict[str, Any]:
    """A dumped section without the keys that affect no result, and with hashes of files' contents instead of names."""
    found = {}
    for key, value in values.items():
        own = getattr(section, key)
        if key in section.uncounted():
            continue
        if isinstance(own, Options):
            value = _counted(own, value, contents, f"{place}{key}.")
        elif key in section.FILES and contents and section.is_file(key):
            others = external_files(Path(own)) if is_onnx(own) else ()
            value = storage.content_hash(own, f"{place}{key}", others)
        found[key] = value
    return found


# Loading


def load(path: str | os.PathLike, overrides: Sequence[str] = (), overlays: Sequence[str | os.PathLike] = ()) -> Config:
    """Read a configuration file on top of its chain of `base:` files, and apply overlays and `a.b=c` overrides to it.

    An overlay is a file of the same form. Its section `moved` maps folders to replacements: a path in the configuration
    that begins with such a folder begins with the replacement instead.

    `name` defaults to the file's stem, and an overlay's `suffix` is appended to it. A relative `base` is relative to
    the file that contains it; `data.root`, `model.name` and `output` are relative to the working directory. `{seed}`
    and `*` in `model.name` (a finished run's folder ends in its seed and fingerprint) are filled in if such a run
    exists. UserError: any mistake in the files or overrides.
    """
    path = Path(path)
    layers, named = [("defaults", {"name": path.stem}), *_read_chain(path, ())], []
    for overlay in overlays:
        moved, suffix, over = _read_overlay(Path(overlay))
        layers = [(source, _moved(layer, moved)) for source, layer in layers] + over
        named.append(suffix)
    layers += [(_said(text), _parse_override(text)) for text in overrides]
    values: dict = {}
    for _, layer in layers:
        values = _merged(values, layer)
    if isinstance(values["name"], str):
        values["name"] += "".join(named)
    try:
        return _with_start(Config.model_validate(values))
    except ValidationError as error:
        # A misspelt required key is also reported as missing: the misspelling explains both.
        raise _explained(min(error.errors(), key=lambda e: e["type"] == "missing"), layers, str(path)) from None


def _with_start(cfg: Config) -> Config:
    """The configuration with a pattern in `model.name` replaced by the saved network that matches it, if there is one.

    UserError: several saved networks match.
    """
    if not cfg.model.is_pattern:
        return cfg
    found = sorted(glob.glob(cfg.model.name.replace("{seed}", str(cfg.seed)) + "-symbol.json"))
    if len(found) > 1:
        several = f"{cfg.model.name} matches several saved networks: {', '.join(found)}"
        raise UserError(f"model.name: {several}; choose one with --set model.name=PREFIX", key="config.start")
    name = found[0][: -len("-symbol.json")] if found else cfg.model.name
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"name": name})})


_Layer = Tuple[str, dict]  # where it was written, and the nested keys written there


def load_all(
    path: str | os.PathLike,
    overrides: Sequence[str] = (),
    seeds: Optional[Sequence[int]] = None,
    overlays: Sequence[str | os.PathLike] = (),
) -> list[tuple[Path, list[str], Config]]:
    """Every experiment of a file or folder at every seed (default: its own), as (file, overrides, configuration).

    In a folder, files whose names start with `_` are bases for others, not experiments. Seeds vary slowest, so that an
    interrupted reproduction has finished whole seeds. UserError: there is no such path, it holds no configuration, or
    one is invalid.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a configuration or a folder of them", key="file.read")
    files = sorted(p for p in path.glob("*.yaml") if not p.name.startswith("_")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds no configuration (*.yaml)", key="config.none")
    sets = [[*overrides, f"seed={seed}"] for seed in seeds] if seeds else [list(overrides)]
    return [(file, given, load(file, given, overlays)) for given in sets for file in files]


def _read_chain(path: Path, above: tuple[Path, ...]) -> list[_Layer]:
    """The layer of the file at `path`, preceded by those of its bases; `above` are the files that led here."""
    here = Path(os.path.realpath(path))
    if here in above:
        circle = " -> ".join(p.name for p in (*above, here))
        raise UserError(f"{path}: its base files form a cycle: {circle}", key="config.base")
    try:
        values = read_yaml(path)
    except UserError as error:
        raise UserError(f"{above[-1]}: base: {error}" if above else str(error), key=error.key) from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        wrong = f"holds {shown(values)}; a configuration consists of `key: value` lines"
        raise UserError(f"{path}: {wrong}", key="config.value")
    base = values.pop("base", None)
    if not isinstance(base, (str, type(None))):
        wrong = f"{shown(base)} should be the path of one configuration file"
        raise UserError(f"{path}: base: {wrong}", key="config.base")
    return [*(() if base is None else _read_chain(path.parent / expanded(base), (*above, here))), (str(path), values)]


def _read_overlay(path: Path) -> Tuple[Dict[str, str], str, list[_Layer]]:
    """An overlay's moved folders, the suffix that it appends to names, and its layers without these two."""
    layers = _read_chain(path, ())
    moved, suffix = {}, ""
    for source, layer in layers:
        found, suffix = layer.pop("moved", {}), layer.pop("suffix", suffix)
        if not isinstance(suffix, str):
            wrong = f"{shown(suffix)} should be the text to append to names, such as -macs-0.1"
            raise UserError(f"{source}: suffix: {wrong}", key="config.value")
        if not isinstance(found, dict) or not all(isinstance(text, str) for pair in found.items() for text in pair):
            wrong = f"{shown(found)} should name folders, such as `data: data/smoke`"
            raise UserError(f"{source}: moved: {wrong}", key="config.value")
        moved.update({old.rstrip("/"): new.rstrip("/") for old, new in found.items()})
    return moved, suffix, layers


def _moved(value: Any, folders: Dict[str, str]) -> Any:
    """`value` with every path in it that begins with one of the folders moved to that folder's replacement."""
    if isinstance(value, dict):
        return {key: _moved(item, folders) for key, item in value.items()}
    for old, new in folders.items() if isinstance(value, str) else ():
        if value == old or value.startswith(f"{old}/"):
            return new + value[len(old) :]
    return value


def _parse_override(text: str) -> dict:
    dotted, equals, value = text.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    if not equals or not all(keys):
        wrong = "should look like section.key=value, such as prune.target=0.5"
        raise UserError(f"{_said(text)}: {wrong}", key="option.value")
    if keys == ["base"]:
        wrong = "base belongs in a file; give that file as the configuration instead"
        raise UserError(f"{_said(text)}: {wrong}", key="config.base")
    nested = parse_yaml(value, _said(text))
    for key in reversed(keys):
        nested = {key: nested}
    return nested


def _said(override: str) -> str:
    return f"--set {override if len(override) <= 200 else override[:200] + '...'}"


def _merged(under: Any, over: Any) -> Any:
    """`under` updated by `over`: sections merge key by key, other values are replaced, as is another kind of target."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    replaced = set(TARGETS) if any(over.get(key) is not None for key in TARGETS) else set()
    kept = {key: value for key, value in under.items() if key not in replaced}
    return {**kept, **{key: _merged(under.get(key), value) for key, value in over.items()}}


# Explaining what is wrong


def _explained(error: Any, layers: list[_Layer], path: str) -> UserError:
    """One line about a pydantic error: where the key was written, the key, the value, what it should be."""
    keys, kind, given = tuple(key for key in error["loc"] if key != "[key]"), error["type"], error["input"]
    if kind in ("tuple_type", "too_short", "too_long") or (kind == "missing" and isinstance(keys[-1], int)):
        keys = keys[: 1 + max(n for n, key in enumerate(keys) if isinstance(key, str))]
        value = shown(list(given) if isinstance(given, tuple) else given)
        key, words = "value", f": {value} does not fit: {_hint(keys)}"
    elif kind in ("model_type", "model_attributes_type"):
        key, words = "value", f": {shown(given)} should be a section with the keys {', '.join(_fields(keys))}"
    else:
        key, words = described(error, _hint(keys))
    if key == "unknown-key":
        words += f"; {_nearest(keys)}"
    source = path if key == "missing-key" else _source(layers, keys, path)
    said = (".".join(map(str, keys)) + words).lstrip(": ")
    return UserError(f"{source}: {said}", key=f"config.{key}")


def _source(layers: list[_Layer], keys: tuple[Union[str, int], ...], path: str) -> str:
    """The source that last set the value at `keys`; an item of a list counts as set with the whole list."""
    named = [key for key in keys if isinstance(key, str)]
    for source, layer in reversed(layers if named else ()):
        with contextlib.suppress(KeyError, TypeError):  # not in this layer
            functools.reduce(operator.getitem, named, layer)
            return path if source == "defaults" else source
    return path


def _fields(keys: tuple[Union[str, int], ...]) -> dict[str, Any]:
    """The known fields of the section at `keys`; empty if there is no such section."""
    section: Any = Config
    for key in keys:
        if get_origin(section) is dict:  # of sections, under names that are not keys
            section = get_args(section)[1]
            continue
        field = section.model_fields.get(key)
        section = field.annotation if field else None
        if get_origin(section) is not dict and not (isinstance(section, type) and issubclass(section, BaseModel)):
            return {}
    if get_origin(section) is dict:
        return {}
    if section is Data:  # the keys that any of the data sets takes
        return {key: field for name in DATASETS for key, field in DATASETS.options[name].model_fields.items()}
    return section.model_fields


def _hint(keys: tuple[Union[str, int], ...]) -> str:
    named = tuple(key for key in keys if isinstance(key, str))
    field = _fields(named[:-1]).get(named[-1]) if named else None
    return field.description or "" if field else ""


def _nearest(keys: tuple[Union[str, int], ...]) -> str:
    """A hint at what was meant: a similar key of the same section, else of another, else all keys of the section."""
    prefix, siblings = "".join(f"{key}." for key in keys[:-1]), list(_fields(keys[:-1]))
    own = {name: prefix + name for name in siblings}
    others = {name: f"{key}.{name}" for key in reversed(Config.model_fields) for name in _fields((key,))}
    for known in (own, {**others, **{key: key for key in Config.model_fields}}):
        for near in difflib.get_close_matches(str(keys[-1]), known, n=1):
            return f"did you mean {known[near]}?"
    return f"{'the keys of ' + prefix[:-1] if prefix else 'the keys'} are {', '.join(siblings)}"
