"""What a full reproduction takes on many GPUs, as Markdown: computed by `experiment.schedule`, not measured."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import pandas as pd

from gcp.experiment.schedule import DAY_S, Parameters, Plan, Row, plans
from gcp.report.tables import duration, formatted, markdown

CLUSTERS = (8, 64)
SIZES = (8, 16, 32, 64, 128, 256, 512)
PER_DAY = 1000


def page(parameters: Parameters, rows: Sequence[Row]) -> str:
    """All tables, and the sources of the numbers they are based on."""
    parts = (_amounts(parameters, rows), _plans(parameters, rows), _sizes(parameters, rows))
    more = (_loader(parameters, rows), _several_machines(parameters, rows), _per_day(parameters, rows))
    return "\n\n".join((*parts, *more, _sources(parameters.values))) + "\n"


def frame(parameters: Parameters, rows: Sequence[Row]) -> pd.DataFrame:
    """The simulated sweeps on clusters of all sizes, unformatted."""
    return pd.DataFrame([plan for n in SIZES for plan in plans(parameters, rows, n)], columns=Plan._fields)


def _table(lines: List[Dict[str, Any]], digits: Dict[str, Any]) -> str:
    return markdown(formatted(pd.DataFrame(lines), digits), digits)


def _hours(parameters: Parameters, rows: Sequence[Row]) -> float:
    """GPU hours of the rows with one GPU per run, over all seeds."""
    return sum(run.seconds for run in parameters.runs(rows, 1)) / 3600


def _amounts(parameters: Parameters, rows: Sequence[Row]) -> str:
    seeds, lines = parameters.values["seeds"], []
    for table in dict.fromkeys(row.name.partition("/")[0] for row in rows):
        mine = [row for row in rows if row.name.startswith(f"{table}/")]
        spent: Counter = Counter()
        for row in mine:
            spent.update(parameters.seconds(row, 1))
        lines.append(
            {
                "Table": table,
                "Runs": len(mine) * seeds,
                "Images to train on (10^9)": seeds
                * sum(row.dense + row.pruning + row.finetuning for row in mine)
                / 1e9,
                "GPU hours": _hours(parameters, mine),
                "of them evaluating %": 100 * spent["evaluation"] / sum(spent.values()),
                "Longest run on one GPU": duration(max(run.seconds for run in parameters.runs(mine, 1))),
            }
        )
    words = {"Table": "all", "Runs": len(rows) * seeds, "GPU hours": _hours(parameters, rows)}
    words["Images to train on (10^9)"] = sum(line["Images to train on (10^9)"] for line in lines)
    digits = {"Runs": 0, "Images to train on (10^9)": 2, "GPU hours": 0, "of them evaluating %": 1}
    slow = _hours(parameters, [row._replace(kept_before=1.0, kept_after=1.0) for row in rows])
    tail = f"Were pruned networks no faster to train than dense ones, all would take {slow:,.0f} GPU hours."
    return f"What there is to do, {seeds} seeds, one GPU a run:\n\n{_table([*lines, words], digits)}\n\n{tail}"


def _plans(parameters: Parameters, rows: Sequence[Row]) -> str:
    lines = [
        {
            "GPUs": plan.n_gpus,
            "GPUs a run": plan.each,
            "Days": plan.days,
            "of them measuring speeds": plan.measuring_days,
            "GPUs in use %": 100 * plan.in_use,
            "Longest run, days": plan.longest_days,
        }
        for n in CLUSTERS
        for plan in plans(parameters, rows, n)
    ]
    digits = {"GPUs": 0, "GPUs a run": 0, "Days": 1, "of them measuring speeds": 2}
    digits |= {"GPUs in use %": 0, "Longest run, days": 1}
    return f"The simulated schedule:\n\n{_table(lines, digits)}"


def _sizes(parameters: Parameters, rows: Sequence[Row]) -> str:
    lines, first = [], None
    for n in SIZES:
        best = min(plans(parameters, rows, n), key=lambda plan: plan.days)
        first = first or best
        lines.append(
            {
                "GPUs": n,
                "Days, best": best.days,
                "GPUs a run": best.each,
                "Speedup over 8 GPUs": first.days / best.days,
                "Ideal": n / first.n_gpus,
                "GPUs in use %": 100 * best.in_use,
            }
        )
    digits = {"GPUs": 0, "Days, best": 1, "GPUs a run": 0, "Speedup over 8 GPUs": 1, "Ideal": 0, "GPUs in use %": 0}
    return f"Where it stops scaling:\n\n{_table(lines, digits)}"


def _loader(parameters: Parameters, rows: Sequence[Row]) -> str:
    lines, per_core = [], parameters.loader_per_core
    for network in dict.fromkeys(row.network for row in rows if row.finetuning):
        mine = [row for row in rows if row.network == network and row.finetuning]
        for kept in (1.0, min(row.kept_after for row in mine)):
            wants = parameters.gpu_speed(mine[0], 1, kept)
            lines.append(
                {
                    "Network": network,
                    "MACs kept %": 100 * kept,
                    "Images/s that a GPU trains on": wants,
                    "Cores that load as many": wants / per_core,
                    "Waits for the loader": "yes" if wants > parameters.loader_speed(1) else "no",
                }
            )
    digits = {"MACs kept %": 1, "Images/s that a GPU trains on": 0, "Cores that load as many": 1}
    waits = sum(sum(parameters.seconds(row, 1).values()) for row in rows)
    endless = sum(sum(parameters.seconds(row, 1, endless_loader=True).values()) for row in rows)
    cores = parameters.values["cores_per_gpu"]["value"]
    tail = (
        f"A core loads {per_core:,.0f} images/s, {cores} cores a GPU {parameters.loader_speed(1):,.0f}. With a loader "
        f"that is never waited for, all would take {100 * (1 - endless / waits):.1f} % less."
    )
    return f"The loader:\n\n{_table(lines, digits)}\n\n{tail}"


def _several_machines(parameters: Parameters, rows: Sequence[Row]) -> str:
    cluster, whole = parameters.values["several_machines"], parameters.speedup
    largest = max(whole)
    return (
        f"Summing gradients: {largest} GPUs of one machine are {whole[largest]:.2f} times as fast as one "
        f"({100 * whole[largest] / largest:.0f} % of ideal), {cluster['gpus']} of several machines "
        f"{cluster['speedup']:.1f} times ({100 * cluster['speedup'] / cluster['gpus']:.0f} %), as published for "
        "others' code. What this toolkit's `dist_sync` reaches between GPUs has not been measured, so no schedule has "
        "a run on several machines."
    )


def _per_day(parameters: Parameters, rows: Sequence[Row]) -> str:
    runs = parameters.runs(rows, 1)
    mean_s = sum(run.seconds for run in runs) / len(runs)
    images = sum(row.dense + row.pruning + row.finetuning for row in rows) / len(rows)
    gpus, rate = PER_DAY * mean_s / DAY_S, PER_DAY * images / DAY_S
    read = rate * parameters.values["bytes_per_image"]["value"] / 1e9
    measuring = PER_DAY * parameters.values["speed_measurement_s"]["value"] / DAY_S
    return (
        f"{PER_DAY:,} such runs a day: {gpus:,.0f} GPUs that are never idle, {rate:,.0f} images/s, for which "
        f"{rate / parameters.loader_per_core:,.0f} cores load and {read:,.1f} GB/s are read, and {measuring:.2f} days "
        "of measuring speeds on one place for each day of runs."
    )


def _sources(values: Dict[str, Any]) -> str:
    lines = [f"- {name}: {source}" for name, source in _named(values)]
    return "What it stands on:\n\n" + "\n".join(lines)


def _named(values: Dict[str, Any], place: str = "") -> Iterator[Tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _named(value, f"{place}{key}.")
        elif key == "source":
            shown = {k: v for k, v in values.items() if k not in ("source", "file", "case")}
            numbers = ", ".join(f"{k} {v}" for k, v in shown.items() if not isinstance(v, dict))
            yield f"`{place[:-1]}`{f' ({numbers})' if numbers else ''}", str(value)
