"""From records to one self-contained HTML page: accuracy against any cost, a table beside it, and every run in detail.

The page opens from disk and loads nothing. Its charts are drawn by Vega-Lite, whose script vl-convert ships; its data
is JSON inside the page. All text from records reaches the page as JSON and is shown as text, never as HTML.
"""

from __future__ import annotations

import datetime
import html
import json
import re
import shlex
from collections import Counter
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

import pandas as pd

from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.experiment.log import read_log
from gcp.experiment.record import RECORD, Finished, Speed
from gcp.report import figure1, frame
from gcp.storage import now, plain, read_yaml, yaml_text

MOST_POINTS = 60  # of a training curve: more than a few hundred pixels can show
KB = 1024


class Axis(NamedTuple):
    """A quantity by which points can be placed: its key in a row, its title, and whether less of it is better."""

    key: str
    title: str
    less_is_better: bool
    is_log: bool = False


AXES = (
    Axis("top1", "Top-1, %", False),
    Axis("top5", "Top-5, %", False),
    Axis("drop", "Top-1 lost, points", True),
    Axis("images_per_second", "Throughput, images/s", False, True),
    Axis("speed", "Throughput, times the dense network's", False),
    Axis("latency_ms", "Latency of a batch, ms", True, True),
    Axis("macs", "Multiply-accumulates of an image, millions", True, True),
    Axis("macs_kept", "MACs kept, %", True, True),
    Axis("params", "Parameters, millions", True, True),
    Axis("params_kept", "Parameters kept, %", True, True),
    Axis("memory", "Peak activation memory of an image, kB", True, True),
    Axis("images_total", "Training images after the dense network, millions", True),
)
FILTERS = {
    "model": "Network",
    "data": "Data",
    "method": "Method",
    "objective": "Objective",
    "target": "Target",
    "seed": "Seed",
    "device": "Timed on",
}


def contents(folder: Path, reference: Optional[Path] = None, without: Sequence[str] = ()) -> Dict[str, Any]:
    """Everything that the page of a folder's records shows, as JSON; `without` names sub-folders to leave out.

    Records that cannot be read are listed as problems. Two that share a fingerprint but hold different results are both
    shown, and flagged. `reference` is the folder of the published data. UserError: there is no such folder.
    """
    runs, problems = records.load_readable(folder, without)
    runs, others = frame.known(runs)
    problems += others
    runs, differing = frame.told_apart(runs)
    rows = list(_rows(runs, folder, differing)) if runs else []
    return {
        "title": str(folder),
        "made": now(),
        "axes": [axis._asdict() for axis in AXES],
        "filters": FILTERS,
        "rows": rows + (_published(reference) if reference is not None else []),
        "problems": [*problems, *(f"{each}: another result with the same fingerprint" for each in sorted(differing))],
        "under_way": under_way(folder, without),
    }


def _rows(runs: Sequence[Finished], folder: Path, differing: Dict[str, str]) -> Iterator[Dict[str, Any]]:
    table, by_name = frame.frame(runs), {run.record.fingerprint: run for run in runs}
    dense = set()
    for facts in frame.in_order(table).to_dict("records"):
        run, is_dense = by_name[facts["fingerprint"]], facts["method"] == "Dense"
        key = (facts["setting"], facts["label"], facts["seed"], run.record.stages.dense.top1)
        if is_dense and key in dense:
            continue  # one network that many runs started from
        dense |= {key} if is_dense else set()
        yield _row(run, facts, folder, is_dense, str(run.path) in differing and not is_dense)


def _row(run: Finished, facts: Dict[str, Any], folder: Path, is_dense: bool, differs: bool) -> Dict[str, Any]:
    record, speed = run.record, run.speeds and run.speeds.throughput
    stage = record.stages.dense if is_dense else record.stages.final
    row = {
        "id": f"{record.fingerprint}-dense" if is_dense else record.fingerprint,
        "layer": "dense" if is_dense else "pruned",
        "setting": " / ".join((facts["data"], facts["model"], facts["scale"], *facts["setting"][3])),
        **{key: facts[key] for key in ("model", "data", "scale", "method", "label")},
        "seed": record.seed,
        "objective": None if is_dense else frame.cost_label(facts["objective"]),
        "target": None if is_dense else f"{100 * facts['target']:.4g} %",
        "device": facts["device"] + _processor(speed) or None,
        "top1": facts["top1"],
        "top5": facts["top5"],
        "drop": 0.0 if is_dense else facts["drop"],
        "speed": facts["throughput_ratio"],
        "macs": stage.macs / 1e6,
        "params": stage.params / 1e6,
        "memory": None if stage.memory is None else stage.memory / KB,
        "macs_kept": facts["macs_kept"],
        "params_kept": facts["params_kept"],
        "images_total": 0.0 if is_dense else facts["images_total"] / 1e6,
        "n_eval": stage.n_eval,
        "folder": str(run.path),
        "differs": differs,
        **_timing(speed, is_dense),
    }
    if not is_dense:
        row["run"] = {
            "date": record.date,
            "command": _command(run.path),
            "config": _config(record.config),
            "layers": _layers(run),
            "pruning": _pruning(record.history),
            "curves": _curves(run.path / "log.jsonl"),
            "images": record.images,
            "computed_on": record.device.cpu if record.device.gpu is None else record.device.gpu,
            "seconds": record.seconds,
        }
    return {key: value for key, value in plain(row, finite=False).items() if value not in (None, "nan")}


def _processor(speed: Optional[Speed]) -> str:
    """What distinguishes processors of the same name: ", family 26 model 2"; "" if it is not known."""
    found = re.search(r"family (\d+), model (\d+)", (speed and speed.hardware.get("cpu_model")) or "")
    return f", family {found[1]} model {found[2]}" if found else ""


def _timing(speed: Optional[Speed], is_dense: bool) -> Dict[str, Any]:
    if speed is None:
        return {}
    timing = speed.dense if is_dense else speed.final
    return {
        "images_per_second": timing.images_per_second,
        "latency_ms": 1e3 * timing.latency_s,
        "noisy": bool(timing.noisy),
    }


def _command(path: Path) -> str:
    return f"python scripts/run.py {shlex.quote(str(path / 'config.yaml'))} --set output=results/again"


def _config(config: Dict[str, Any]) -> str:
    """The configuration as YAML, without the options of other methods and without empty values."""
    prune = config["prune"]
    own = {key: value for key, value in prune.items() if not isinstance(value, dict) or key == prune["method"]}
    return yaml_text(_set({**config, "prune": own}), width=100)


def _set(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _set(value) for key, value in values.items() if value not in (None, {}, [])}
    return values


def _layers(run: Finished) -> Dict[str, Any]:
    """Rows for the picture of a network: its layers in order, and the lines between those that are tied.

    A record without layers gets a row for each group, and no lines.
    """
    widths = run.record.widths
    if widths.layers is None:
        rows = [{"layer": name, "dense": n, "final": widths.final.get(name, 0)} for name, n in widths.dense.items()]
        return {"rows": rows, "ties": []}
    rows = [{"layer": each.name, "dense": each.dense or 0, "final": each.final or 0} for each in widths.layers]
    where: Dict[str, List[int]] = {}
    for k, each in enumerate(widths.layers):
        for group in each.groups:
            where.setdefault(group, []).append(k)
    return {"rows": rows, "ties": _lanes({group: at for group, at in where.items() if len(at) > 1})}


def _lanes(ties: Dict[str, List[int]]) -> List[Dict[str, Any]]:
    """Ties, each in the first lane that is free along its whole extent."""
    ends: List[int] = []
    found = []
    for group, at in sorted(ties.items(), key=lambda item: item[1][0]):
        lane = next((k for k, end in enumerate(ends) if end < at[0]), len(ends))
        ends[lane : lane + 1] = [at[-1]]
        found.append({"group": group, "lane": lane, "at": at})
    return found


PRUNING = {
    "cost_kept": "cost kept",
    "loss_regularised": "loss after training with the penalty",
    "loss_pruned": "loss after removal",
    "loss_recovered": "loss after recovery",
}


def _pruning(history: Sequence[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """For each iteration that a method logged, its effect on cost and loss."""
    rows = []
    for row in history:
        if isinstance(row.get("iteration"), int):
            numbers = {key: row.get(key) for key in PRUNING}
            rows += [
                {"iteration": row["iteration"], "what": PRUNING[key], "value": value}
                for key, value in numbers.items()
                if isinstance(value, (int, float))
            ]
    return rows


def _curves(path: Path) -> List[Dict[str, Any]]:
    """Training losses by stage, from a run's log; empty if the log is missing or damaged."""
    try:
        events = [each for each in read_log(path) if each.get("event") == "epoch"]
    except UserError:
        return []
    stages: Dict[str, List[Dict[str, Any]]] = {}
    for event in events:
        loss, epoch = event.get("training_loss"), event.get("epoch")
        if isinstance(loss, (int, float)) and isinstance(epoch, (int, float)):
            stages.setdefault(str(event.get("stage")), []).append({"epoch": epoch, "loss": loss})
    rows = []
    for stage, points in stages.items():
        every = -(-len(points) // MOST_POINTS)
        last = points[-1:] if (len(points) - 1) % every else []
        rows += [{"stage": stage, **point} for point in points[::every] + last]
    return rows


def _published(folder: Path) -> List[Dict[str, Any]]:
    """GluonCV's networks as their authors timed them, including the released PruneNets."""
    networks = figure1.published(folder)
    columns = {"model": "name", "params_m": "params", "gmacs_224": "gmacs", "params_kept": "kept", "top5": "top5"}
    released = figure1.read_table(folder / "released_prunenets.csv", columns).set_index("name")
    rows = []
    for facts in networks.to_dict("records"):
        row = {
            "id": f"published-{facts['name']}",
            "layer": "published",
            "setting": "published",
            "model": facts["name"],
            "data": "imagenet",
            "scale": "published",
            "method": f"Published: {facts['kind']}",
            "label": f"{facts['name']}, published",
            "device": f"batch {facts['batch']}, {facts['device']}, as published",
            "top1": facts["top1"],
            "images_per_second": facts["images_per_second"],
            "latency_ms": 1e3 * facts["batch"] / facts["images_per_second"],
        }
        if facts["name"] in released.index:
            own = released.loc[facts["name"]]
            row |= {"top5": own.top5, "params": own.params, "macs": 1e3 * own.gmacs, "params_kept": 100 * own.kept}
        rows.append({key: value for key, value in plain(row, finite=False).items() if not pd.isna(value)})
    return rows


# ---- runs under way --------------------------------------------------------------------------------------------------


def under_way(folder: Path, without: Sequence[str] = ()) -> List[Dict[str, Any]]:
    """Runs and dense networks that have a log but are not finished: their folders and training curves."""
    found = []
    for where, _, files in records.walk(folder, without):
        names = set(files)
        is_dense = Path(where).name.startswith("dense-seed")
        if "log.jsonl" not in names or RECORD in names or (is_dense and "dense.json" in names):
            continue
        if is_dense or "config.yaml" in names:
            found.append(_progress(Path(where), is_dense))
    return sorted((each for each in found if each is not None), key=lambda each: each["folder"])


def _progress(path: Path, is_dense: bool) -> Optional[Dict[str, Any]]:
    log = path / "log.jsonl"
    try:
        events = read_log(log)
        config = {} if is_dense else read_yaml(path / "config.yaml")
    except (UserError, OSError):
        return None  # it may just be being written, and is read again later
    last = events[-1] if events else {}  # it holds its own time, which survives copying the file
    facts = {key: last[key] for key in ("stage", "epoch", "step", "training_loss", "iteration") if key in last}
    if not isinstance(config, dict) or not events:
        return None
    try:
        changed = datetime.datetime.fromisoformat(last["time"]).timestamp()
    except (KeyError, TypeError, ValueError):  # a log written by another program
        return None
    recipe = config.get("finetune")
    planned = recipe.get("epochs") if isinstance(recipe, dict) and facts.get("stage") == "final" else None
    row = {"folder": str(path), "changed": changed, "of_epochs": planned, "curves": _curves(log), **facts}
    return plain(row, finite=False)


# ---- the page --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def script() -> str:
    """Vega and Vega-Lite in one script.

    UserError: the package that ships them is not installed.
    """
    try:
        from vl_convert import javascript_bundle
    except ImportError:
        fix = "install it: pip install -c constraints.txt '.[page]'"
        raise UserError(f"--html: a page needs the package vl-convert-python; {fix}", "page.package") from None
    # HTML ends a script at the first such tag, even inside a string, so none may occur within it.
    return javascript_bundle().replace("</script", "<\\/script")


def page(data: Dict[str, Any], live: Optional[float] = None) -> str:
    """The page; `live` is the interval in seconds at which it asks its server for updates, None if it has no server."""
    folder = resources.files("gcp.report") / "assets"
    text, style, code = ((folder / f"page.{end}").read_text(encoding="utf-8") for end in ("html", "css", "js"))
    parts = {
        "title": html.escape(data["title"]),
        "style": style,
        "library": script(),
        "data": embedded(data),
        "live": json.dumps(live),
        "code": code,
    }
    # In one pass, so that inserted text is not searched for placeholders.
    pieces = text.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def made(path: Path) -> str:
    """When a page was made, according to the page itself; "" if it does not say."""
    found = re.search(r'"made":"([^"]*)"', path.read_text(encoding="utf-8"))
    return found[1] if found else ""


def embedded(data: Any) -> str:
    """JSON that is safe in an HTML script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def summary(data: Dict[str, Any]) -> str:
    """The contents of the page in one line."""
    n = Counter(row["layer"] for row in data["rows"])
    parts = [f"{n[layer]} {layer}" for layer in ("pruned", "dense", "published") if n[layer]]
    return f"{', '.join(parts)} networks" + (f"; {len(data['problems'])} problems" if data["problems"] else "")
