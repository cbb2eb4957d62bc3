"""Records in, tables (Markdown, LaTeX, CSV) and figures (PNG, SVG) out; nothing is run here.

This is the only room that formats digits: records hold fractions, tables print percent. One table row is one
method at one target, its seeds aggregated; figures are drawn by `gcp.figures`. Missing values print "-".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gcp.errors import UserError
from gcp.experiment.record import Finished, load_records
from gcp.report import figures, tables
from gcp.report.figures import OBJECTIVES, in_order
from gcp.report.tables import MISSING

GCP = {"macs": "GCP-f", "params": "GCP-p", "latency": "GCP-latency"}  # by what channels are weighed against
COST_KEYS = {"macs": "macs_kept", "params": "params_kept", "latency": "latency_kept"}
EQUAL_COST = 0.02  # achieved costs further apart than this (relative) are not an equal comparison

SCALES = {
    "paper": "Paper scale",
    "reduced": "REDUCED scale: less data or training than the paper's, so no reproduction of its numbers",
    "smoke": "SMOKE scale: these runs only show that the code works; their accuracies mean nothing",
}


class Measure(NamedTuple):
    """One measured column: its title, its key in the frame of runs, how seeds are joined, its digits."""

    title: str
    key: str
    how: str  # "mean +- sd", "mean" or "median"
    digits: int


MEASURES = (
    Measure("MACs kept %", "macs_kept", "mean", 2),
    Measure("Params kept %", "params_kept", "mean", 2),
    Measure("Top-1 %", "top1", "mean +- sd", 2),
    Measure("Drop (points)", "drop", "mean +- sd", 2),
    Measure("Top-5 %", "top5", "mean", 2),
    Measure("Images/s", "images_per_second", "median", 0),
    Measure("Throughput ratio", "throughput_ratio", "median", 2),
    Measure("Top-1 % before fine-tuning", "pruned_top1", "mean", 2),
    Measure("Images before fine-tuning", "images_before", "mean", 0),
    Measure("Fine-tune epochs", "finetune_epochs", "mean", 0),
    Measure("Images total", "images_total", "mean", 0),
)
COMPARED = (
    Measure("Top-1 difference (points)", "difference", "mean +- sd", 2),
    Measure("Cost kept %", "cost", "mean", 2),
    Measure("Cost kept %, other", "other_cost", "mean", 2),
    Measure("Cost difference %", "cost_difference", "mean", 2),
    Measure("Images total", "images", "mean", 0),
    Measure("Images total, other", "other_images", "mean", 0),
)


def write(records_folder: str | Path, output: str | Path | None = None) -> list[Path]:
    """Write every table and figure of the records below `records_folder` into `output`.

    The default output is `report/` in that folder. Returns the paths written: table and comparison as .md,
    .tex, .csv; accuracy_cost, accuracy_throughput and one widths_<objective>_<target> per target as .png,
    .svg; of several models on the same data, figure1 with the Pareto front. A figure without a single value
    (throughput never measured, nothing pruned) is left out.
    The same records give the same bytes.
    UserError: the folder is missing, holds no record or a broken one, or `output` cannot be written.
    """
    runs = run_frame([as_dict(run) for run in load_records(records_folder)])
    output = Path(records_folder) / "report" if output is None else Path(output)
    try:
        return _write_all(runs, output)
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: cannot write the report ({error.strerror}); "
            "choose another folder with --output"
        ) from error


def embed(document: str | Path) -> None:
    """Bring the tables in a Markdown document up to date with the files they come from, so that nobody types one.

    Between a line `<!-- begin PATH -->` (relative to the document) and the next `<!-- end -->` stands what is in PATH.
    UserError: the document, or a PATH in it, cannot be read.
    """
    document = Path(document)

    def block(match: re.Match) -> str:
        return f"{match[1]}\n{(document.parent / match[2]).read_text(encoding='utf-8').strip()}\n{match[3]}"

    try:
        text = document.read_text(encoding="utf-8")
        new = re.sub(r"(<!-- begin (\S+) -->)\n.*?(<!-- end -->)", block, text, flags=re.DOTALL)
        if new != text:
            document.write_text(new, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read or written ({error.strerror})") from error


def _write_all(runs: pd.DataFrame, output: Path) -> list[Path]:
    output.mkdir(parents=True, exist_ok=True)

    paths = _write_table(summary(runs), MEASURES, _caption(runs), output / "table", "tab:results")
    paths += _write_table(
        comparison(runs), COMPARED, _comparison_caption(runs), output / "comparison", "tab:comparison"
    )
    paths += figures.write(runs, output)
    return paths


# Records -> one frame of runs


def as_dict(run: Finished) -> dict:
    """A finished run as one dict."""
    record, throughput = run.record, run.speeds and run.speeds.throughput
    stages = {name: {**stage, "throughput": None} for name, stage in record.stages.model_dump().items()}
    for name in ("dense", "final") if throughput else ():
        stages[name]["throughput"] = {**getattr(throughput, name).model_dump(), **throughput.setup}
    return {
        **record.model_dump(exclude={"stages", "history"}),
        "stages": stages,
        "iterations": record.history,
        "macs_kept": record.macs_kept,
        "params_kept": record.params_kept,
        "latency_kept": run.speeds and run.speeds.latency_kept,
        "images_before_finetune": record.images_before_finetune,
        "images_total": record.images_total,
    }


def run_frame(records: list[dict]) -> pd.DataFrame:
    """One row per run (accuracies and costs in percent), and one "Dense" row per setting and seed.

    `setting` is what a dense network depends on: data, model, scale and any other dense option that varies
    among the records. `label` is the method with every option that tells it from its neighbours, so that only
    seeds are averaged.
    """
    unique = {record.get("fingerprint") or f"no fingerprint {i}": record for i, record in enumerate(records)}
    records = list(unique.values())
    flat = [options_of(record) for record in records]
    place = [tuple(str(record.get(key) or MISSING) for key in ("data", "model", "scale")) for record in records]
    dense_options = varying(flat, place, lambda key: key.split(".")[0] in ("model", "data", "train", "threads"))
    settings = [p + (options,) for p, options in zip(place, dense_options)]

    scores = {f.get("prune.score") for f, record in zip(flat, records) if record.get("method") == "gcp"}
    named = [method_name(record, f, len(scores) > 1) for record, f in zip(records, flat)]
    identity = [
        (s, label, _counted(record, f), record.get("target"))
        for s, (_, label), record, f in zip(settings, named, records, flat)
    ]
    options = varying(flat, identity, lambda key: key.split(".")[0] in ("prune", "finetune"))

    rows = []
    for record, config, setting, (method, label), extra in zip(records, flat, settings, named, options):
        common = {
            "setting": setting,
            "data": setting[0],
            "model": setting[1],
            "scale": setting[2],
            "seed": record.get("seed"),
            "device": device_of(record),
        }
        dense, final = (_get(record, "stages", stage) or {} for stage in ("dense", "final"))
        if dense or method == "Dense":
            rows.append(common | _dense_row(dense or final, ", ".join(("Dense",) + setting[3])))
        if method == "Dense":
            continue
        ratio = _ratio(_get(final, "throughput", "images_per_second"), _get(dense, "throughput", "images_per_second"))
        rows.append(
            common
            | {
                "method": method,
                "label": ", ".join((label,) + setting[3] + extra),
                "objective": _counted(record, config),
                "target": record.get("target"),
                "macs_kept": _percent(record.get("macs_kept")),
                "params_kept": _percent(record.get("params_kept")),
                "latency_kept": _percent(record.get("latency_kept")),
                "top1": _percent(final.get("top1")),
                "top5": _percent(final.get("top5")),
                "n_eval": final.get("n_eval"),
                "drop": _difference(_percent(dense.get("top1")), _percent(final.get("top1"))),
                "images_per_second": _get(final, "throughput", "images_per_second"),
                "throughput_ratio": ratio,
                "pruned_top1": _percent(_get(record, "stages", "pruned", "top1")),
                "images_before": record.get("images_before_finetune"),
                "finetune_epochs": final.get("epochs"),
                "images_total": record.get("images_total"),
                "kept": _kept(record),
                "n_channels": _get(record, "widths", "dense") or {},
            }
        )
    columns = [
        "setting",
        "data",
        "model",
        "scale",
        "method",
        "label",
        "objective",
        "target",
        "seed",
        "device",
        "n_eval",
        "kept",
        "n_channels",
        "latency_kept",
    ] + [measure.key for measure in MEASURES]
    frame = pd.DataFrame(rows, columns=columns)
    numbers = ["target", "n_eval", "latency_kept"] + [measure.key for measure in MEASURES]
    frame[numbers] = frame[numbers].astype(float)  # None becomes NaN
    return frame


def _dense_row(stage: dict, label: str) -> dict:
    measured = _get(stage, "throughput", "images_per_second")
    return {
        "method": "Dense",
        "label": label,
        "macs_kept": 100.0,
        "params_kept": 100.0,
        "top1": _percent(stage.get("top1")),
        "top5": _percent(stage.get("top5")),
        "n_eval": stage.get("n_eval"),
        "images_per_second": measured,
        "throughput_ratio": None if measured is None else 1.0,
        "images_total": stage.get("images"),
    }


def _counted(record: dict, config: dict[str, Any]) -> str | None:
    """The cost that the target is about; it can be another than the one that channels are weighed against."""
    return config.get("prune.budget") or record.get("objective")


def method_name(record: dict, config: dict[str, Any], several_scores: bool) -> tuple[str, str]:
    """(method, method with its named variants): ("GCP-f", "GCP-f, widths x8")."""
    method = record.get("method")
    if method == "none":
        return "Dense", "Dense"
    if method == "gcp":
        objective = record.get("objective")
        name = GCP.get(objective, f"GCP-{objective}")
    elif method == "uniform":
        criterion = config.get("prune.criterion")
        name = f"Uniform ({'L1' if criterion in (None, 'l1') else criterion})"
    else:
        name = str(method).capitalize()
    parts = [name]
    if several_scores and method == "gcp":
        parts.append(f"score={config.get('prune.score')}")
    round_to = record.get("round_to") or config.get("prune.round_to") or 1
    if round_to > 1:
        parts.append(f"widths x{round_to}")
    if config.get("finetune.extra_epochs"):
        parts.append(f"+{config['finetune.extra_epochs']} epochs")
    return name, ", ".join(parts)


NAMED_OPTIONS = {
    "data.name",
    "prune.method",
    "prune.objective",
    "prune.budget",
    "prune.latency_model",
    "prune.target",
    "prune.target_ms",
    "prune.target_images_per_second",
    "prune.criterion",
    "prune.score",
    "prune.round_to",
    "finetune.extra_epochs",
}


def varying(configs: list[dict], places: list[tuple], wanted) -> list[tuple[str, ...]]:
    """Per run, "key=value" of each wanted option that differs among the runs of its place.

    Without this, runs that differ in, say, the number of iterations would be averaged as if they were seeds.
    """
    values: dict[tuple, dict[str, set]] = {}
    for config, place in zip(configs, places):
        for key in {k for c in configs for k in c if wanted(k)} - NAMED_OPTIONS:
            values.setdefault(place, {}).setdefault(key, set()).add(json.dumps(config.get(key)))
    return [
        tuple(
            f"{key}={json.dumps(config.get(key))}".replace('"', "")
            for key, seen in sorted(values.get(place, {}).items())
            if len(seen) > 1
        )
        for config, place in zip(configs, places)
    ]


def options_of(record: dict) -> dict[str, Any]:
    """The record's configuration with dotted keys. A saved network that it starts from is named without its seed.

    Of the sections of methods only that of the record's own counts, and its keys follow `prune.` directly.
    """
    config = dict(record.get("config") or {})
    prune = config.get("prune") or {}
    own = prune.get(record.get("method")) or {}
    config["prune"] = {**{key: value for key, value in prune.items() if not isinstance(value, dict)}, **own}
    flat = flatten(config)
    if isinstance(flat.get("model.name"), str):
        flat["model.name"] = re.sub(r"-seed\d+-[0-9a-f]{12}(?=/)", "", flat["model.name"])
    return flat


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """Nested sections as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _kept(record: dict) -> dict[str, float]:
    """Group -> percent of its channels kept, in the record's order."""
    dense, final = (_get(record, "widths", stage) or {} for stage in ("dense", "final"))
    return {group: 100.0 * final[group] / n for group, n in dense.items() if n and final.get(group) is not None}


def device_of(record: dict) -> str:
    """What a throughput stands on: "batch 64, float32, cpu (model), 2 threads"; "" if none was measured."""
    measured = _get(record, "stages", "final", "throughput") or _get(record, "stages", "dense", "throughput")
    if not measured:
        return ""
    device, processor = measured.get("device"), _get(record, "device", "cpu")
    parts = [
        f"batch {measured['batch']}" if measured.get("batch") else None,
        measured.get("dtype"),
        f"{device} ({processor})" if processor and str(device).startswith("cpu") else device,
        f"{measured['threads']} thread{'s' * (measured['threads'] != 1)}" if measured.get("threads") else None,
    ]
    return ", ".join(str(part) for part in parts if part)


def _get(record: Any, *keys: str) -> Any:
    for key in keys:
        if not isinstance(record, dict):
            return None
        record = record.get(key)
    return record


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100.0 * fraction


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


# Runs -> tables


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per setting, objective, target and method: seeds and, per measure, mean (or median) and sd.

    The dense network comes first in its setting; then by objective, falling target, GCP before others.
    """
    rows = []
    for setting, some in in_order(runs).groupby("setting", sort=False):
        for (label, objective, target), same in some.groupby(
            ["label", "objective", "target"], sort=False, dropna=False
        ):
            rows.append(
                {
                    "Data": setting[0],
                    "Model": setting[1],
                    "Method": label,
                    "Objective": OBJECTIVES.get(objective, objective) if isinstance(objective, str) else None,
                    "Target %": 100.0 * target,
                }
                | aggregate(same, MEASURES)
                | {"Seeds": same.seed.nunique(), "Scale": setting[2]}
            )
    return pd.DataFrame(rows)


def comparison(runs: pd.DataFrame) -> pd.DataFrame:
    """GCP minus every other method (GCP for another objective, too) at the same setting, objective and target, by seed.

    Cost is the one that both were pruned for (`COST_KEYS`); its difference is relative: GCP's over the
    other's, minus one.
    """
    rows = []
    pruned = in_order(runs[runs.method != "Dense"])
    for (setting, objective, target), some in pruned.groupby(["setting", "objective", "target"], sort=False):
        cost = COST_KEYS[objective]
        is_ours = some.method == GCP[objective]
        for label, ours in some[is_ours].groupby("label", sort=False):
            for other_label, other in some[~is_ours].groupby("label", sort=False):
                pair = (
                    _by_seed(ours, ["top1", cost, "images_total"])
                    .join(_by_seed(other, ["top1", cost, "images_total"]), rsuffix="_other", how="inner")
                    .reset_index()
                )
                if pair.empty:
                    continue
                apart = pair[cost] / pair[cost + "_other"] - 1
                numbers = pd.DataFrame(
                    {
                        "seed": pair.seed,
                        "difference": pair.top1 - pair.top1_other,
                        "cost": pair[cost],
                        "other_cost": pair[cost + "_other"],
                        "cost_difference": 100 * apart,
                        "images": pair.images_total,
                        "other_images": pair.images_total_other,
                    }
                )
                # The seed furthest apart decides: a mean could hide two that differ in opposite directions.
                equal = None if apart.isna().any() else "yes" if apart.abs().max() <= EQUAL_COST else "NO"
                rows.append(
                    {
                        "Data": setting[0],
                        "Model": setting[1],
                        "Method": label,
                        "Other": other_label,
                        "Objective": OBJECTIVES.get(objective, objective),
                        "Target %": 100.0 * target,
                    }
                    | aggregate(numbers, COMPARED)
                    | {"Equal cost": equal, "Seeds": len(pair), "Scale": setting[2]}
                )
    columns = [
        "Data",
        "Model",
        "Method",
        "Other",
        "Objective",
        "Target %",
        *titles(COMPARED),
        "Equal cost",
        "Seeds",
        "Scale",
    ]
    return pd.DataFrame(rows, columns=columns)


QUANTIZED = (
    Measure("MACs kept %", "macs_kept", "mean", 2),
    Measure("Top-1 %", "top1", "mean", 2),
    Measure("Points lost", "lost", "mean", 2),
    Measure("Images/s", "images_per_second", "mean", 0),
    Measure("Times the first", "times_first", "mean", 2),
)


def write_int8(rows: list[dict], stem: Path) -> list[Path]:
    """The table of `experiment.quantize`'s rows: pruning and quantisation alone and together, first network first."""
    first = rows[0]
    lines = []
    for row in rows:
        for form in ("float32", "int8"):
            measured = row[form]
            lines.append(
                {
                    "Network": Path(row["network"]).parent.name or row["network"],
                    "Arithmetic": form,
                    "MACs kept %": 100.0 * row["macs"] / first["macs"],
                    "Top-1 %": _percent(measured["top1"]),
                    "Points lost": 100.0 * (first["float32"]["top1"] - measured["top1"]),
                    "Images/s": measured["images_per_second"],
                    "Times the first": measured["times_first"],
                }
            )
    at = first["float32"]
    caption = (
        f"Pruned and int8. Accuracies on {at['n_eval']:,} test images; int8 calibrated on "
        f"{first['n_calibration']:,} training images. Points lost and speed: against the first network in "
        f"float32. Speeds in turns, batch {at['batch']}, {at['device']}, {at['threads']} "
        f"thread{'s' * (at['threads'] != 1)}."
    )
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        return _write_table(pd.DataFrame(lines), QUANTIZED, caption, stem, "tab:int8")
    except OSError as error:
        raise UserError(f"{stem}: the table cannot be written ({error.strerror}); give another --table") from error


def write_validations(folder: Path) -> list[Path]:
    """A table of every latency model's validation (`*.validation.json`, as `latency.validate` gives) in a folder."""
    paths = sorted(folder.glob("*.validation.json"))
    if not paths:
        raise UserError(f"{folder}: holds no *.validation.json; `scripts/latency.py validate` writes them with --out")
    found = [_validation(path) for path in paths]
    models = list(dict.fromkeys(name for result in found for name in result["quality"]))
    lines = []
    for result in found:
        setup, height = result["setup"], result["input"][1]
        line = {
            "Network": f"{result['network']}, {height} px, batch {setup['batch']}",
            "Own latency (ms)": 1e3 * result["reference_s"],
            "Granularity": result["granularity"],
            "Sampled": result["n_samples"],
            "Minutes": None if result["sampling_s"] is None else result["sampling_s"] / 60,
            "Held out": len(result["measured_s"]),
            "Span": "{:.2f} to {:.2f}".format(*result["span"]),
        }
        for name in models:
            good = result["quality"].get(name, {})
            line[f"{name}: NRMSE %"], line[f"tau, {name}"] = _percent(good.get("nrmse")), good.get("tau")
        lines.append(line)
    measures = (
        Measure("Own latency (ms)", "", "mean", 2),
        Measure("Granularity", "", "mean", 0),
        Measure("Sampled", "", "mean", 0),
        Measure("Minutes", "", "mean", 1),
        Measure("Held out", "", "mean", 0),
        *(
            m
            for name in models
            for m in (Measure(f"{name}: NRMSE %", "", "mean", 1), Measure(f"tau, {name}", "", "mean", 3))
        ),
    )
    setups = sorted(
        {
            f"{r['setup']['runtime']} on {r['hardware']['cpu']}, {r['setup']['dtype']}, "
            f"{r['setup']['threads']} thread{'s' * (r['setup']['threads'] != 1)}"
            for r in found
        }
    )
    caption = (
        f"Predicted against measured latency of networks with random widths that no model was fitted to "
        f"({'; '.join(setups)}). NRMSE: root mean squared error over the mean; tau: Kendall's; span: of the "
        "held-out networks' latencies, over the network's own. MACs: proportional to them; layers alone: the "
        "sum of all layers, each timed by itself; clock again: the same networks timed a second time, which no "
        "model can be nearer than by luck."
    )
    frame = pd.DataFrame(lines).astype({m.title: float for m in measures})
    return _write_table(frame, measures, caption, folder / "validation", "tab:latency")


def _validation(path: Path) -> dict:
    """What `latency.validate` gave, as it was written. UserError: the file is something else."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        lacking = {
            "network",
            "input",
            "setup",
            "hardware",
            "reference_s",
            "granularity",
            "n_samples",
            "sampling_s",
            "measured_s",
            "span",
            "quality",
        } - set(result)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read as a validation ({error}); make it anew with `latency.py validate`, or remove it"
        ) from error
    if lacking:
        raise UserError(f"{path}: lacks '{min(lacking)}'; make it anew with `latency.py validate`, or remove it")
    return result


def _by_seed(runs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    return runs.groupby("seed", dropna=False)[keys].mean()


def aggregate(runs: pd.DataFrame, measures: Iterable[Measure]) -> dict[str, float]:
    """Title -> value over seeds; a seed that occurs twice (the dense network of many runs) counts once."""
    row = {}
    for measure in measures:
        per_seed = runs.groupby("seed", dropna=False)[measure.key]
        values = (per_seed.median() if measure.how == "median" else per_seed.mean()).dropna()
        row[measure.title] = values.median() if measure.how == "median" else values.mean()
        if measure.how == "mean +- sd":
            row[measure.title + " sd"] = values.std(ddof=1)  # NaN for a single seed
    return row


def titles(measures: Iterable[Measure]) -> list[str]:
    """The columns of some measures: each one's title, and that of its deviation."""
    return [t for m in measures for t in ([m.title, m.title + " sd"] if m.how == "mean +- sd" else [m.title])]


def formatted(table: pd.DataFrame, measures: Iterable[Measure]) -> pd.DataFrame:
    """The table as it prints: strings, mean and sd in one cell; Data and Model only if there are several."""
    by_title = {measure.title: measure for measure in measures}
    printed = {}
    for title in table.columns:
        if title.endswith(" sd") or (title in ("Data", "Model") and table[title].nunique() < 2):
            continue
        if title == "Target %":
            printed[title] = [tables.number(v, None) for v in table[title]]
        elif title in by_title:
            digits = by_title[title].digits
            signed = "+" if "ifference" in title else ""
            sds = table[title + " sd"] if by_title[title].how == "mean +- sd" else [float("nan")] * len(table)
            printed[title] = [
                tables.number(v, digits, signed) + ("" if pd.isna(sd) else f" ± {sd:.{digits}f}")
                for v, sd in zip(table[title], sds)
            ]
        else:
            printed[title] = [MISSING if pd.isna(v) else str(v) for v in table[title]]
    return pd.DataFrame(printed)


def _write_table(
    table: pd.DataFrame, measures: tuple[Measure, ...], caption: str, stem: Path, label: str
) -> list[Path]:
    printed = formatted(table, measures)
    words = ("Data", "Model", "Method", "Other", "Objective", "Equal cost", "Scale", "Network", "Arithmetic", "Span")
    align = ["left" if title in words else "right" for title in printed.columns]
    return tables.write(table, printed, align, caption, stem, label)


def _caption(runs: pd.DataFrame) -> str:
    sentences = [f"{_whose(runs)}.", *scale_sentences(runs.scale)]
    evaluated = sorted({int(n) for n in runs.n_eval.dropna()})
    if evaluated:
        sentences.append(f"Accuracies on {' or '.join(f'{n:,}' for n in evaluated)} test images.")
    sentences.append(
        "Mean ± sample standard deviation over seeds; drop: points below the same seed's dense network. "
        "Images total: training images after the dense network; in the dense row, its own."
    )
    devices = sorted({device for device in runs.device if device})
    if devices:
        sentences.append(
            f"Throughput: median over seeds, {'; '.join(devices)}; ratio: to the same run's dense network."
        )
    dense = runs[runs.method == "Dense"]
    unlike = [
        f"{setting[1]} seed {seed}"
        for (setting, seed), some in dense.groupby(["setting", "seed"])
        if some.top1.nunique() > 1
    ]
    if unlike:  # should not happen: equal options and seed give one dense network
        sentences.append(
            f"CAUTION: the runs of {', '.join(unlike)} do not share one dense network; its row is their mean."
        )
    return " ".join(sentences)


def _comparison_caption(runs: pd.DataFrame) -> str:
    if comparison(runs).empty:
        return "No GCP run shares data, model, objective, target and seed with a run of another method."
    return " ".join(
        [
            f"Comparison at equal achieved cost, {_whose(runs)}:",
            "top-1 of the method minus that of the other, seed by seed.",
            *scale_sentences(runs.scale),
            "Mean ± sample standard deviation over the seeds that both have.",
            "Cost: what both were pruned for (objective).",
            f"Equal cost says NO where any seed's achieved costs differ by more than {100 * EQUAL_COST:g} %.",
        ]
    )


def _whose(runs: pd.DataFrame) -> str:
    return "; ".join(f"{', '.join(sorted(some.model.unique()))} on {data}" for data, some in runs.groupby("data"))


def scale_sentences(scales: Iterable[str]) -> list[str]:
    """What every caption says of the scales of its runs."""
    return [SCALES.get(scale, f"Scale {scale}") + "." for scale in sorted(set(scales))]
