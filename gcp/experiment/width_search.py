"""Search widths step by step: train a slimmable network, solve for any bound, compute the front, validate the gains.

`methods.width_search` does the first two in one experiment; here each is a step of its own, on the file of statistics.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from gcp import storage
from gcp.backend.zoo import open_network
from gcp.cost import latency
from gcp.cost.analytic import macs, params
from gcp.cost.base import COSTS, Cost, along_a_line, largest_scale
from gcp.data.datasets import Dataset
from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.experiment import run as experiment_run
from gcp.experiment.config import Config
from gcp.experiment.log import Log
from gcp.experiment.plan import load_data, plan
from gcp.graph.network import Network, Widths
from gcp.graph.surgery import redrawn, resized
from gcp.methods.autoslim import EVALUATED
from gcp.methods.base import Problem
from gcp.methods.width_search import OwsOptions, narrow, shared_prefix, trained
from gcp.search import statistics
from gcp.search.solvers import Solution, Solver
from gcp.search.statistics import Gains, Statistics
from gcp.seeds import Stream, hash_seed
from gcp.train import checkpoints
from gcp.train.distributed import process_group

BOUND = re.compile(r"(?:(macs|params|latency):)?([0-9]{0,9}\.?[0-9]{0,12})(ms)?")


# ---- a slimmable network ---------------------------------------------------------------------------------------------


def train(cfg: Config) -> Path:
    """The file of statistics of the slimmable network of a configuration of method ows, trained if it does not exist.

    The network is shared with the configuration's experiments. UserError: the method is another one, whose slimmable
    network does not serve every bound.
    """
    return _trained(cfg)[0]


def _trained(cfg: Config, check: Callable[[Problem], None] = lambda problem: None) -> Tuple[Path, Network, Problem]:
    """The file of statistics, the slimmable network, and its problem; `check` is called before anything is trained."""
    _check_method(cfg)
    with process_group().output(cfg.output) as output:
        cfg = cfg.model_copy(update={"output": output})
        data = load_data(cfg.data, cfg.seed)
        start, budget = plan(cfg, data)
        problem = Problem(start, budget, data, cfg.seed, cfg.data.batch, cfg.data.augment, task=data.task)
        check(problem)
        shared = records.dense_path(cfg)
        prefix = shared_prefix(shared, cfg.prune.options, budget.round_to)
        with Log(shared / "log.jsonl", cfg.tensorboard) as log:
            run = SimpleNamespace(path=shared, shared=shared, log=log.add)
            net, _ = trained(problem, cfg.prune.options, prefix, run)
        return statistics.path_of(prefix), net, problem


def _check_method(cfg: Config) -> None:
    if type(cfg.prune.options) is not OwsOptions:
        wrong = f"'{cfg.prune.method}' does not train a slimmable network that serves every bound"
        raise UserError(f"prune.method: {wrong}; give a configuration with method ows", "search.method")


# ---- widths for a bound ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WidthProblem:
    """A width search on a file of statistics: its network, gains, and a solver for each cost.

    `latency_model` is the file of the model that predicts the cost `latency`.
    """

    path: Path
    held: Statistics
    gains: Gains
    latency_model: Optional[Path] = None

    @classmethod
    def open(
        cls, path: Path, estimator: str = "least_squares", window: float = 0.5, latency_model: Optional[Path] = None
    ) -> WidthProblem:
        """Read a file of statistics, and estimate the gains."""
        held = statistics.read(path)
        return cls(path, held, statistics.gains_of(held.drawn, held.header.levels, estimator, window), latency_model)

    @cached_property
    def network(self) -> Network:
        """The original network, whose widths are 100 %. UserError: its groups or widths differ from the statistics."""
        head = self.held.header
        net = open_network(head.network, head.input, head.classes)
        if net.widths != head.sizes:
            raise UserError(
                f"{self.path}: '{head.network}' now has other groups or widths; {statistics.FIX}", "search.other"
            )
        return net

    def cost(self, name: str) -> Tuple[Cost, float]:
        """The cost of this name, and its value for the network itself. UserError: the latency model is missing or of
        another network."""
        net = self.network
        if name != "latency":
            cost = COSTS[name](net, None)
            return cost, cost(net.widths)
        if self.latency_model is None:
            raise UserError("a bound on latency needs a latency model; give one with --latency-model", "search.model")
        model = latency.load(self.latency_model)
        wrong = None
        if model.sizes != net.widths:
            wrong = f"is for '{model.network}', but the statistics are for '{net.name}' with other groups or widths"
        elif tuple(model.input) != tuple(net.input_shape):
            sizes = ["x".join(map(str, size)) for size in (model.input, net.input_shape)]
            wrong = f"is for images of {sizes[0]}, but the statistics are for {sizes[1]}"
        if wrong is not None:
            raise UserError(f"{self.latency_model}: {wrong}; sample and fit one for this network", "search.other")
        cost = model.cost(net)
        return cost, cost(net.widths)  # predicted, as in experiments, rather than measured

    def solver(self, name: str) -> Tuple[Solver, float]:
        """A solver for a cost, and the cost of the network itself."""
        cost, original = self.cost(name)
        return Solver(self.held.header.levels, cost), original


def bound(text: str, default: str) -> Tuple[str, float, bool]:
    """Parse a bound such as `0.4`, `macs:0.2` or `3ms`: the cost, the number, and whether the number is in seconds.

    UserError: the text is not a bound.
    """
    found = BOUND.fullmatch(text)
    number = float(found[2]) if found and found[2].strip(".") else 0.0
    if not found or number <= 0 or (found[3] and found[1] not in (None, "latency")):
        raise UserError(
            f"--bound {text:.40}: should be a fraction of the network's cost such as 0.4, macs:0.4, params:0.4 or "
            "latency:0.4, or a time such as 3ms",
            "search.bound",
        )
    return ("latency" if found[3] else found[1] or default), number / (1e3 if found[3] else 1), bool(found[3])


def solve(problem: WidthProblem, bounds: Sequence[str]) -> Iterator[Dict[str, Any]]:
    """For each bound, the best widths within it, their predicted cost and their gain.

    UserError: a bound is below the cost of the narrowest widths.
    """
    default = "macs" if problem.latency_model is None else "latency"
    for text in bounds:
        name, number, is_seconds = bound(text, default)
        solver, original = problem.solver(name)
        limit = number if is_seconds else number * original
        if limit < solver.lowest:
            lowest = 1e3 * solver.lowest if is_seconds else solver.lowest / original
            least = f"{np.ceil(1e4 * lowest) / 1e4:.4f}{' ms' if is_seconds else ''}"
            wrong = f"the narrowest widths of the grid need {least} of {name}"
            raise UserError(
                f"--bound {text}: {wrong}; give a higher bound, or train with a lower prune.ows.narrowest",
                "search.bound",
            )
        solution = solver.solve(problem.gains, limit)
        yield {"bound": text, **described(problem, name, solution, original)}


def described(problem: WidthProblem, name: str, solution: Solution, original: float) -> Dict[str, Any]:
    """A solution as plain values: cost (seconds or counts), fractions of the network's own costs, gain, gap, widths."""
    sizes = problem.held.header.sizes
    net = problem.network
    others = {
        key: count(net)(solution.widths) / count(net)(sizes) for key, count in (("macs", macs), ("params", params))
    }
    return {
        "cost": name,
        "value": solution.cost,
        "kept": solution.cost / original,
        "macs_kept": others["macs"],
        "params_kept": others["params"],
        "gain": solution.value,
        "gap": solution.gap,
        "widths": {group: solution.widths[group] for group in sizes},
    }


def front(problem: WidthProblem, name: str, n: int) -> List[Dict[str, Any]]:
    """The widths of highest gain at up to `n` bounds on a cost, cheapest first."""
    solver, original = problem.solver(name)
    return [described(problem, name, solution, original) for solution in solver.front(problem.gains, n)]


def uniform(problem: WidthProblem, name: str) -> List[Dict[str, Any]]:
    """For comparison: every group at the same relative level, from its narrowest to its widest."""
    cost, original = problem.cost(name)
    levels, gains = problem.held.header.levels, problem.gains
    rows = []
    most = max(map(len, levels.values()))
    for k in range(most):
        at = {group: round(k * (len(of) - 1) / max(1, most - 1)) for group, of in levels.items()}
        widths = {group: levels[group][i] for group, i in at.items()}
        rows.append({"kept": cost(widths) / original, "gain": sum(gains[group][i] for group, i in at.items())})
    return rows


# ---- which widths suit a device --------------------------------------------------------------------------------------


def landscape(net: Network, cost: Cost, n: int, multiple: int) -> Dict[str, pd.DataFrame]:
    """A cost in seconds of networks whose groups all have the same fraction of their widths, from 10 to 150 %.

    Returns a table for `n` fractions as they are, and one for widths rounded to `multiple`, without repetitions. Their
    columns are `part`, the fraction of the widths, and `ms`.
    """
    parts = np.linspace(0.1, 1.5, n)
    lines = {}
    for label, round_to in (("every width", 1), (f"multiples of {multiple}", multiple)):
        seconds = along_a_line(cost, net.widths, parts, round_to)
        line = pd.DataFrame({"part": parts, "ms": 1e3 * np.array(seconds)})
        # After rounding, neighbours are often the same network.
        lines[label] = line if round_to == 1 else line[line.ms.diff().fillna(1) != 0].reset_index(drop=True)
    return lines


# ---- validating the gains --------------------------------------------------------------------------------------------


def validate(
    cfg: Config, n: int, part: float, progress: Callable[[int, int], None], trainings: int = 1
) -> pd.DataFrame:
    """Train `n` networks of random widths of the grid, at the fraction `part` of the MACs, and compute their gains.

    A row per network: validation accuracy and loss, as means over `trainings` by the recipe `finetune`, each from other
    initial weights; fractions of MACs and parameters kept; the gain by every estimator; and minus the validation loss
    of the slimmable network cut to these widths. With several trainings, also the accuracy of the `first` and the mean
    of the `others`. Each network is trained once and read back by the next call, and by calls for other slimmable
    trainings on the same grid.
    """
    from gcp.train.slimmable import loss_by_batch_statistics
    from gcp.train.tasks import TASKS

    def check(problem: Problem) -> None:
        count = macs(problem.net)
        levels = cfg.prune.options.grid(problem.net.widths, problem.budget.round_to)
        lowest = Solver(levels, count).lowest / count(problem.net.widths)
        if lowest > part:
            least = f"the narrowest widths of the grid need {lowest:.4f} of the MACs"
            raise UserError(
                f"--macs {part:g}: {least}; give a higher fraction, or lower prune.ows.narrowest", "search.bound"
            )

    path, slimmable, problem = _trained(cfg, check)
    net, data, held = problem.net, problem.data, statistics.read(path)
    levels, window = held.header.levels, cfg.prune.options.window
    estimates = {name: statistics.gains_of(held.drawn, levels, name, window) for name in statistics.ESTIMATORS}
    judged = [(x[:m], y[:m]) for x, y, m in data.validation.batches(EVALUATED)]
    count, folder, rows = macs(net), records.dense_path(cfg) / "validate", []
    folder.mkdir(exist_ok=True)
    for k in range(n):
        rng = np.random.default_rng(Stream.WIDTHS.seed(cfg.seed, k + 1))
        chosen = scaled(levels, count, part * count(net.widths), rng)
        widths = {group: levels[group][at] for group, at in chosen.items()}
        text = json.dumps([widths, cfg.finetune.model_dump(mode="json")])
        prefix = folder / f"macs-{part:g}-{k:03d}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        small, first = resized(net, widths), Stream.WIDTHS.seed(cfg.seed, k + 1)
        found = [_trained_alone(cfg, data, small, prefix, first)]
        for again in range(1, trainings):
            found.append(_trained_alone(cfg, data, small, Path(f"{prefix}-{again}"), hash_seed(first, again)))
        top1 = [facts["validation_top1"] for facts in found]
        rows.append(
            {
                "top1": np.mean(top1),
                "loss": np.mean([facts["validation_loss"] for facts in found]),
                **({"first": top1[0], "others": np.mean(top1[1:])} if trainings > 1 else {}),
                "macs_kept": count(widths) / count(net.widths),
                "params_kept": params(net)(widths) / params(net)(net.widths),
                **{name: sum(float(of[g][at]) for g, at in chosen.items()) for name, of in estimates.items()},
                "slimmable": -loss_by_batch_statistics(narrow(slimmable, widths), TASKS[data.task], judged),
            }
        )
        progress(k + 1, n)
    return pd.DataFrame(rows)


def _trained_alone(cfg: Config, data: Dataset, small: Network, prefix: Path, seed: int) -> Dict[str, Any]:
    """The facts of training a network from new weights, which is done once and saved under `prefix`.

    Waits while another process trains a network in the same folder.
    """
    with storage.locked(prefix.parent), Log(prefix.parent / "log.jsonl", False) as log:

        def add(event: str, **facts: Any) -> None:
            log.add(event, **{**facts, "stage": prefix.name})  # one log holds all networks

        def compute(checkpoint: Path) -> Tuple[Network, Dict[str, Any]]:
            return experiment_run.train(redrawn(small, seed), data, cfg, cfg.finetune, Stream.FINETUNE, checkpoint, add)

        return checkpoints.run_once(prefix, compute)[1]


def scaled(
    levels: Mapping[str, Sequence[int]], cost: Cost, limit: float, rng: np.random.Generator, spread: float = 4.0
) -> Dict[str, int]:
    """Level indices of each group for widths in random proportions, the largest whose cost is within the limit."""
    shares = {group: spread ** rng.uniform(-0.5, 0.5) for group in levels}

    def at(scale: float) -> Dict[str, int]:
        wanted = {group: scale * shares[group] * of[-1] for group, of in levels.items()}
        return {group: max(0, int(np.searchsorted(of, wanted[group], "right")) - 1) for group, of in levels.items()}

    def widths(chosen: Mapping[str, int]) -> Widths:
        return {group: levels[group][k] for group, k in chosen.items()}

    return at(largest_scale(lambda scale: widths(at(scale)), cost, limit, spread))
