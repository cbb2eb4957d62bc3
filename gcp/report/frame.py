"""From finished runs to one frame: a row per run, with every number that a table or a figure shows.

Records hold fractions; the frame holds percent. What a run is called, and which runs are seeds of one another, is
decided here; the names of methods and costs come from their registry entries.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

import gcp.cost
import gcp.methods  # noqa: F401
from gcp.cost.base import COSTS
from gcp.data.datasets import DATASETS, Data
from gcp.errors import UserError
from gcp.experiment.config import Model
from gcp.experiment.record import RECORD, Finished, Stage, Timing, load_records
from gcp.methods.base import METHODS, MethodOptions

Images = Literal["test", "validation"]
# Sections and keys of a configuration that the dense network depends on.
DENSE_SECTIONS = ("model", "data", "train", "threads", "workers")
PRUNE_SECTIONS = ("prune", "finetune", "search")
# Options that a method's name or the table's own columns already show.
NAMED_OPTIONS = {
    "data.name",
    "finetune.extra_epochs",
    "search.storage",
    *(f"prune.{key}" for key in ("method", "objective", "budget", "latency_model", "round_to")),
    *(f"prune.{key}" for key in ("target", "target_ms", "target_images_per_second")),
}
# Options that older records lack because they did not exist yet, and the values that describe those runs.
NEW_OPTIONS = {
    "prune": {"reconstruction_images": 0},
    "finetune": {"includes_pruning": False, "from_scratch": False},
    "search": {"trials": 0},
}
WORDS = (
    "fingerprint setting data model scale method label parts objective searched device kept n_channels noisy "
    "cost_noisy images"
).split()
NUMBERS = (
    "target seed n_eval macs_kept params_kept cost_kept top1 top5 drop images_per_second throughput_ratio "
    "pruned_top1 images_before finetune_epochs images_total latency_kept dense_ms"
).split()


def known(runs: Iterable[Finished]) -> tuple[list[Finished], list[str]]:
    """The runs that this version can report, and a message for each of the others, such as of an unknown method."""
    found, problems = [], []
    for run in runs:
        try:
            _rows([run], "test")
            cost_label(counted(run))
            _ = run.record.config["prune"]["method"], run.record.config["data"]["input"][1]  # for the page, and `paper`
        except (UserError, LookupError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            problems.append(f"{run.path / RECORD}: not a record of this version ({why}); run the experiment again")
        else:
            found.append(run)
    return found, problems


def loaded(folders: Iterable[str | Path]) -> list[Finished]:
    """The runs below folders. Results of one fingerprint that differ are named on stderr, since only one will count.

    UserError: a record cannot be read or reported.
    """
    runs, problems = known(run for folder in folders for run in load_records(folder))
    if problems:
        raise UserError(problems[0])
    for path in sorted(told_apart(runs)[1]):
        print(f"warning: {path}: another result with the same fingerprint; only one counts", file=sys.stderr)
    return runs


def unique(runs: Iterable[Finished]) -> list[Finished]:
    """The runs without duplicates: a copy of a record is not a second seed. A copy that was timed is preferred."""
    found: dict[str, Finished] = {}
    for run in runs:
        if found.setdefault(run.record.fingerprint, run).speeds is None and run.speeds is not None:
            found[run.record.fingerprint] = run
    return list(found.values())


def told_apart(runs: Iterable[Finished]) -> tuple[list[Finished], dict[str, str]]:
    """The runs without copies; runs that share a fingerprint but have different results get names of their own.

    The second value maps the folder of each such run to its name.
    """
    alike: dict[str, list[list[Finished]]] = {}  # by fingerprint, the copies of each result
    for run in runs:
        of_name = alike.setdefault(run.record.fingerprint, [])
        copies = next((copies for copies in of_name if _results(copies[0]) == _results(run)), None)
        if copies is None:
            of_name.append([run])
        else:
            copies.append(run)
    kept, differing = [], {}
    for name, of_name in alike.items():
        for k, copies in enumerate(of_name):
            (run,), own = unique(copies), name if not k else f"{name}-{k + 1}"
            kept.append(run._replace(record=run.record.model_copy(update={"fingerprint": own})))
            if len(of_name) > 1:
                differing[str(run.path)] = own
    return kept, differing


def _results(run: Finished) -> tuple[Any, ...]:
    stages = run.record.stages
    numbers = [(s.top1, s.top5, s.macs, s.params) for s in (stages.dense, stages.pruned, stages.final)]
    return (*numbers, sorted(run.record.widths.final.items()))


def frame(runs: Iterable[Finished], images: Images = "test") -> pd.DataFrame:
    """One row per run (accuracies and costs in percent), and per run a row of its dense network ("Dense").

    `images` selects the accuracies: those on the test images, or on the validation images, by which settings should be
    chosen. UserError: a record does not hold the latter. `setting` is what a dense network depends on: data, model,
    scale and any other dense option that varies among the runs. `label` is the method with every option that
    distinguishes it from its neighbours, so that only seeds are averaged; `parts` are the method and these options.
    """
    rows = _rows(unique(runs), images)
    return pd.DataFrame(rows, columns=WORDS + NUMBERS).astype(dict.fromkeys(NUMBERS, float))  # None becomes NaN


def _rows(runs: Sequence[Finished], images: Images) -> list[dict[str, Any]]:
    """The rows of `frame`, of runs without duplicates."""
    places = [(run.record.data, run.record.model, run.record.scale) for run in runs]
    settings = [(*place, options) for place, options in zip(places, varying(runs, places, DENSE_SECTIONS))]
    names = method_names(runs)
    lines = [(setting, name, counted(run)) for setting, (_, name), run in zip(settings, names, runs)]
    cells = [(*line, run.record.target) for line, run in zip(lines, runs)]
    rows = []
    for run, setting, (method, name), extra in zip(runs, settings, names, varying(runs, cells, PRUNE_SECTIONS, lines)):
        record, stages, speed = run.record, run.record.stages, run.speeds and run.speeds.throughput
        common = dict(zip(("data", "model", "scale"), setting)) | {
            "fingerprint": record.fingerprint,
            "searched": bool(record.searches),
            "setting": setting,
            "seed": record.seed,
            "images": images,
            "device": device_of(run),
            "noisy": bool(speed and (speed.dense.noisy or speed.final.noisy)),
            "dense_ms": _dense_ms(run),
        }
        rows.append(
            common
            | (dense := _measured(stages.dense, speed and speed.dense, images))
            | {"method": "Dense", **_labelled("Dense", *setting[3]), "images_total": stages.dense.images}
            | {"macs_kept": 100.0, "params_kept": 100.0, "throughput_ratio": 1.0 if speed else None}
            | {"latency_kept": 100.0}
        )
        if not METHODS.options[record.method].PRUNES:
            continue
        rows.append(
            common
            | (final := _measured(stages.final, speed and speed.final, images))
            | {
                "method": method,
                **_labelled(name, *setting[3], *extra),
                "objective": counted(run),
                "target": record.target,
                "macs_kept": 100.0 * record.macs_kept,
                "params_kept": 100.0 * record.params_kept,
                "cost_kept": _cost_kept(run),
                "latency_kept": _latency_kept(run),
                "cost_noisy": bool(run.speeds and run.speeds.budget and run.speeds.budget.noisy),
                "throughput_ratio": speed and speed.final.images_per_second / speed.dense.images_per_second,
                "drop": dense["top1"] - final["top1"],
                "pruned_top1": 100.0 * stages.pruned.top1 if images == "test" else None,
                "images_before": record.images_before_finetune,
                "finetune_epochs": stages.final.epochs,
                "images_total": record.images_total,
                "kept": {
                    group: 100.0 * record.widths.final.get(group, 0) / n for group, n in record.widths.dense.items()
                },
                "n_channels": record.widths.dense,
            }
        )
    return rows


def _labelled(*parts: str) -> dict[str, Any]:
    return {"label": ", ".join(parts), "parts": parts}


def _measured(stage: Stage, timing: Timing | None, images: Images) -> dict[str, Any]:
    found = (stage.top1, stage.top5, stage.n_eval)
    if images == "validation":
        found = (stage.validation_top1, stage.validation_top5, stage.n_validation)
        if None in found:
            raise UserError("a record lacks its accuracy on validation images; run the experiment again")
    top1, top5, n_eval = found
    speed = timing and timing.images_per_second
    return {"top1": 100.0 * top1, "top5": 100.0 * top5, "n_eval": n_eval, "images_per_second": speed}


def _cost_kept(run: Finished) -> float | None:
    """The percentage that is left of the cost that the budget applies to; None if it is not known."""
    record = run.record
    counted_ones = {"macs": record.macs_kept, "params": record.params_kept}
    if counted(run) in counted_ones:
        return 100.0 * counted_ones[counted(run)]
    if getattr(COSTS[counted(run)], "is_timed", False):
        return _latency_kept(run)
    return None if record.cost_predicted is None else 100.0 * record.cost_predicted


def _latency_kept(run: Finished) -> float | None:
    """The percentage that is left of the budget's latency; None unless it was measured where the run was pruned.

    Pruning checks that its latency model was fitted on its own processor and, for a latency on a GPU, its own GPU: a
    latency measured on another device does not show whether the budget was met.
    """
    budget = run.speeds and run.speeds.budget
    if not budget:
        return None
    keys = ("cpu", "cpu_model", *(() if budget.setup.get("device") == "cpu" else ("gpu",)))
    # Files from before `cpu_model` was recorded identify the processor by its name only.
    pairs = [(budget.hardware.get(key), getattr(run.record.device, key)) for key in keys]
    is_same = all(there == here for there, here in pairs if there and here)
    return 100.0 * budget.kept if is_same else None


def _dense_ms(run: Finished) -> float | None:
    """The dense network's latency in milliseconds where the budget's latency was measured; None if it was not."""
    budget = run.speeds and run.speeds.budget
    return 1e3 * budget.dense_s if budget and budget.dense_s and _latency_kept(run) is not None else None


def device_of(run: Finished) -> str:
    """The conditions of a throughput: "batch 64, float32, cpu (model), 2 threads"; "" if none was measured."""
    if not run.speeds:
        return ""
    setup, hardware = run.speeds.throughput.setup, run.speeds.throughput.hardware
    model = hardware["cpu"] if setup["device"].startswith("cpu") else hardware.get("gpu")
    device = setup["device"] + (f" ({model})" if model else "")
    return f"batch {setup['batch']}, {setup['dtype']}, {device}, {threads(setup['threads'])}"


def threads(n: int) -> str:
    """A number of threads in words: "1 thread", "2 threads"."""
    return f"{n} thread{'s' * (n != 1)}"


# ---- names ---------------------------------------------------------------------------------------------------------


def in_order(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs in the order of tables and legends: by setting, objective, target, method, label and seed.

    The dense network is the first method, followed by GCP in the order of the costs that it weighs channels against.
    """
    rank = {name: i for i, name in enumerate(["Dense", *(COSTS[cost].method for cost in COSTS)])}
    return runs.assign(
        _rank=runs.method.map(lambda method: rank.get(method, len(rank))),
        _down=-runs.target,
        _objective=runs.objective.fillna(""),
    ).sort_values(["setting", "_objective", "_down", "_rank", "method", "label", "seed"], na_position="first")


def counted(run: Finished) -> str:
    """The cost that the target applies to; it can differ from the one that channels are weighed against."""
    return run.record.config["prune"]["budget"] or run.record.objective


def cost_label(objective: Any) -> str | None:
    """The name of a cost in tables; None if there is no cost."""
    return COSTS[objective].label if isinstance(objective, str) else None


def method_names(runs: Sequence[Finished]) -> list[tuple[str, str]]:
    """For each run (method, method with its variants): ("GCP-f", "GCP-f, widths x8").

    A method's variant is named only if the runs have several of it.
    """
    options = [options_of(run) for run in runs]
    seen = {(run.record.method, *item) for run, each in zip(runs, options) for item in each.variant().items()}
    n_values, names = Counter((method, key) for method, key, _ in seen), []
    for run, each in zip(runs, options):
        record, extra = run.record, run.record.config["finetune"]["extra_epochs"]
        name = each.label(record.objective)
        parts = [f"{key}={value}" for key, value in each.variant().items() if n_values[record.method, key] > 1]
        parts += [f"widths x{record.round_to}"] if record.round_to > 1 else []
        parts += ["searched"] if record.searches else []
        parts += [f"+{extra} epoch{'s' * (extra > 1)}"] if extra else []
        names.append((name, ", ".join((name, *parts)) if each.PRUNES else name))
    return names


def options_of(run: Finished) -> MethodOptions:
    """The options of the run's own method; lists become tuples, as in a configuration that has been read."""
    own = run.record.config["prune"][run.record.method]
    return METHODS.options[run.record.method](
        **{key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
    )


def varying(
    runs: Sequence[Finished], places: Sequence[tuple], sections: Sequence[str], lines: Sequence[tuple] | None = None
) -> list[tuple[str, ...]]:
    """For each run, "key=value" for every option in these sections that differs among the runs of its place.

    Without this, runs that differ in, say, the number of iterations would be averaged as if they were seeds. An option
    that differs at one place of a line is named at all of its places, so that the line has one name.
    """
    options = [dict(_options(run, sections)) for run in runs]
    keys = sorted({key for each in options for key in each} - NAMED_OPTIONS)
    seen = {(place, key, each.get(key, "null")) for each, place in zip(options, places) for key in keys}
    n_values = Counter((place, key) for place, key, _ in seen)
    lines = places if lines is None else lines
    named = {(line, key) for line, place in zip(lines, places) for key in keys if n_values[place, key] > 1}
    return [
        tuple(f"{key}={each.get(key, 'null')}" for key in keys if (line, key) in named)
        for each, line in zip(options, lines)
    ]


def _options(run: Finished, sections: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Dotted keys and values of some sections; a method's own options follow `prune.` directly, others are left out.

    So are keys that do not affect results. The name of a saved network that the run starts from omits the seed and the
    fingerprint of the run that made it.
    """
    uncounted = {"data": DATASETS.options.get(run.record.data, Data).UNCOUNTED, "model": Model.UNCOUNTED}
    for section in sections:
        values = run.record.config.get(section, {})
        if section == "workers":  # by default one for each GPU
            values = values or max(1, len(run.record.config.get("gpus") or ()))
        if isinstance(values, dict):
            values = NEW_OPTIONS.get(section, {}) | values
        if section == "prune":
            values = {key: value for key, value in values.items() if not isinstance(value, dict)}
            values |= options_of(run).model_dump(mode="json")
        if section == "search":
            values = {**values, **values["parameters"]} if run.record.searches else {}
            values.pop("parameters", None)
        if section == "model":
            values = values | {"name": re.sub(r"-seed\d+-[0-9a-f]{12}(?=/)", "", values["name"])}
        if section in uncounted:
            values = {key: value for key, value in values.items() if key not in uncounted[section]}
        for key, value in values.items() if isinstance(values, dict) else [("", values)]:
            yield f"{section}.{key}".rstrip("."), json.dumps(value).replace('"', "")


# ---- seeds ---------------------------------------------------------------------------------------------------------


class Measure(NamedTuple):
    """One column over seeds: its title, its key in the frame of runs, how seeds are aggregated, and its digits."""

    title: str
    key: str
    how: str = "mean"  # "mean +- sd", "mean", "median" or "any"
    digits: int = 2


def aggregate(runs: pd.DataFrame, cells: list[str], measures: Iterable[Measure]) -> pd.DataFrame:
    """A row per cell, in the order of the runs: the columns of `cells`, those of `titles`, and the number of seeds.

    A seed that occurs several times (the dense network of many runs) counts once. A single seed has no deviation.
    """
    joined = {m.title: m.how.partition(" ")[0] for m in measures}
    by_seed = runs.groupby([*cells, "seed"], sort=False, dropna=False).agg(
        **{m.title: (m.key, joined[m.title]) for m in measures}
    )
    of_cell = by_seed.groupby(cells, sort=False, dropna=False)
    table = of_cell.agg(joined).assign(Seeds=of_cell.size())
    for measure in measures:
        if measure.how == "mean +- sd":
            table[f"{measure.title} sd"] = of_cell[measure.title].std()
    return table[[*titles(measures), "Seeds"]].reset_index()


def titles(measures: Iterable[Measure]) -> list[str]:
    """The columns that `aggregate` returns: each measure's title, and that of its deviation if it has one."""
    return [t for m in measures for t in ([m.title, m.title + " sd"] if m.how == "mean +- sd" else [m.title])]
