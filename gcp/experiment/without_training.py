"""Measure pruning without training: every criterion, with and without recomputed statistics and fitted weights."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Callable, List, Literal, Sequence

from pydantic import BaseModel, ConfigDict, Field

from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.experiment.config import Config
from gcp.experiment.plan import load_data, plan
from gcp.experiment.record import run_path
from gcp.experiment.run import dense_network
from gcp.methods.base import METHODS, Problem
from gcp.storage import locked, read_json, write_json
from gcp.train.distributed import process_group
from gcp.train.tasks import TASKS

# Name in the rows -> criterion and allocation. L1 norms cannot be compared between groups.
CRITERIA = {
    "random": ("random", "uniform"),
    "l1": ("l1", "uniform"),
    "paper": ("paper", "global"),
    "relative": ("relative", "global"),
    "taylor": ("taylor", "global"),
    "taylor, uniform": ("taylor", "uniform"),
}
N_IMAGES = 512  # for recomputing statistics, and for fitting weights

Fraction = Annotated[float, Field(ge=0, le=1)]


class Row(BaseModel):
    """One pruned network: test accuracies and MACs kept as fractions, and the `seconds` from scoring to the result."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    network: str
    data: str
    scale: Literal["paper", "reduced", "smoke"]
    seed: int = Field(ge=0)
    criterion: Literal[tuple(CRITERIA)]
    statistics: bool
    fitted: bool
    target: Fraction
    macs_kept: Fraction
    top1: Fraction
    dense_top1: Fraction
    n_eval: int = Field(ge=1)
    seconds: float = Field(ge=0)


def rows_path(cfg: Config) -> Path:
    """The file with the rows of a configuration and its seed; another one after anything in it has changed."""
    return Path(f"{run_path(cfg)}.json")


def read_rows(path: Path) -> List[Row]:
    """The rows of a file. UserError: it does not hold rows."""
    return read_json(path, List[Row], "remove it, and it will be measured again")


def measure(cfg: Config, targets: Sequence[float], progress: Callable[[int, int], None]) -> List[Row]:
    """Prune the configuration's dense network, which is trained if missing, in every way and to every target.

    The rows are written after every cut; existing rows are not measured again.
    """
    path = rows_path(cfg)
    with locked(path.parent, f".{path.name}.lock"):
        rows = read_rows(path) if path.exists() else []
        done = {(row.criterion, row.statistics, row.fitted, row.target) for row in rows}
        cells = list(itertools.product(CRITERIA, (False, True), (False, True), targets))
        todo = [cell for cell in cells if cell not in done]
        if not todo:
            return rows
        with process_group().output(cfg.output):
            data = load_data(cfg.data, cfg.seed)
            net, _ = dense_network(cfg, data, plan(cfg, data)[0])
        task, cost = TASKS[data.task], macs(net)
        dense = task.evaluate(net, data.test)
        for number, (name, statistics, fitted, target) in enumerate(todo):
            criterion, allocation = CRITERIA[name]
            budget = Budget(cost, cost(net.widths), target, cfg.prune.round_to)
            options = METHODS.options["one_shot"](criterion=criterion, allocation=allocation)
            how = {"statistics_images": N_IMAGES * statistics, "reconstruction_images": N_IMAGES * fitted}
            problem = Problem(net, budget, data, cfg.seed, cfg.data.batch, moved="mean", **how)
            began = time.monotonic()
            small = METHODS["one_shot"](problem, options, SimpleNamespace(path=None, log=None)).network
            seconds = time.monotonic() - began
            found = task.evaluate(small, data.test)
            row = Row(
                network=net.name,
                data=data.name,
                scale=cfg.scale,
                seed=cfg.seed,
                criterion=name,
                statistics=statistics,
                fitted=fitted,
                target=target,
                macs_kept=cost(small.widths) / budget.original,
                top1=found["top1"],
                dense_top1=dense["top1"],
                n_eval=found["n_eval"],
                seconds=round(seconds, 3),
            )
            rows.append(row)
            write_json(path, [row.model_dump(mode="json") for row in rows])
            progress(number + 1, len(todo))
        return rows
