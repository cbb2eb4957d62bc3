"""Tools around an architecture search: describe its space, validate its qualities, explain a pattern, and transfer a
pattern to another network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from gcp.backend.zoo import open_network
from gcp.cost import latency
from gcp.cost.analytic import macs, params
from gcp.cost.base import Cost
from gcp.cost.memory import peak_memory
from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.experiment.config import Config
from gcp.experiment.log import Log
from gcp.experiment.plan import budget_of, latency_model, load_data, plan
from gcp.graph.network import Network
from gcp.methods.architecture import limits_of, space_of
from gcp.search import patterns
from gcp.search.candidates import Judged, trained
from gcp.search.exploration import Question
from gcp.search.patterns import Pattern
from gcp.search.quality import QUALITIES
from gcp.search.solvers import Solver
from gcp.search.space import Priced, Space, SpaceOptions
from gcp.seeds import Stream

COUNTED = {"macs": macs, "params": params, "memory": peak_memory}  # costs that need no file
DRAWN = 10_000  # random architectures from which the reachable fraction is estimated


def check_method(cfg: Config) -> None:
    """Raise UserError if the method of the configuration has no space of architectures."""
    if cfg.prune.method != "architecture":
        wrong = f"'{cfg.prune.method}' has no space of architectures; give a configuration with method architecture"
        raise UserError(f"prune.method: {wrong}", "search.method")


# ---- a space ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """A space: its free and fixed decisions, the number of architectures, the range of each cost in the cost's own
    units, and the fraction of random architectures that are within all budgets."""

    network: str
    decisions: Dict[str, Tuple[Any, ...]]
    fixed: Dict[str, Any]
    n_architectures: int
    ranges: Dict[str, Tuple[float, float, float]]  # the lowest, the highest, and the network's own
    reachable: float
    budgets: Tuple[str, ...]


def described(cfg: Config) -> Described:
    """Describe the space of a configuration. UserError: no architecture meets all budgets; says how close one comes."""
    check_method(cfg)
    start = open_network(cfg.model.name, cfg.data.input, cfg.data.known_size()[0], seed=cfg.seed)
    budget = budget_of(cfg, start, latency_model(cfg, start))
    options = cfg.prune.options
    space = space_of(start, options.space, budget.round_to)
    limits = limits_of(space, options, budget)
    question = Question(space, lambda levels: np.zeros(len(levels)), tuple(limits), 1, np.random.default_rng(0))
    question.feasible(1)
    drawn = space.random(DRAWN, np.random.default_rng(0))
    priced = {name: space.price(lambda net, of=of: of(net)) for name, of in COUNTED.items()}
    if cfg.prune.counted not in priced:
        priced[cfg.prune.counted] = limits[0].costs[0]
    return Described(
        start.name,
        dict(space.decisions),
        {name: value for name, value in space.fixed.items() if value != space.own[name]},
        space.n_architectures,
        {name: (*_ends(space, cost), _own(start, name, budget)) for name, cost in priced.items()},
        float((question.excess(drawn) == 0).mean()),
        tuple(limit.name for limit in limits),
    )


def _own(net: Network, name: str, budget: Any) -> float:
    return COUNTED[name](net)(net.widths) if name in COUNTED else budget.original


def _ends(space: Space, cost: Priced) -> Tuple[float, float]:
    """The lowest and the highest cost of any architecture."""
    numbers = {name: range(len(values)) for name, values in space.decisions.items()}
    lowest = Solver(numbers, cost.cost()).lowest
    if not cost.is_sum:
        return lowest, float(max(table.max() for table in cost.tables.values()))
    turned = Priced(space.decisions, {scope: -table for scope, table in cost.tables.items()}, True)
    return lowest, -Solver(numbers, turned.cost()).lowest


# ---- validating qualities --------------------------------------------------------------------------------------------


def validate(
    cfg: Config, n: int, part: float, qualities: Sequence[str], tolerance: float, progress: Callable[[int, int], None]
) -> pd.DataFrame:
    """Train `n` random architectures of about equal MACs, as candidates are trained, and score them by `qualities`.

    The MACs are the fraction `part` of the network's, up to a relative `tolerance`. Returns a row per architecture:
    validation top-1 (a fraction) and loss, costs, seconds, and the scores. Each is trained once and read back later.
    """
    check_method(cfg)
    data = load_data(cfg.data, cfg.seed)
    net, budget = plan(cfg, data)
    options, folder = cfg.prune.options, records.dense_path(cfg)
    space = space_of(net, options.space, budget.round_to)
    whole = macs(net)(net.widths)
    low, high = (1 - tolerance) * part * whole, (1 + tolerance) * part * whole
    rng = np.random.default_rng(Stream.ARCHITECTURES.seed(cfg.seed, 4))
    levels = space.random_at(space.price(macs), low, high, n, rng)
    with Log(folder / "log.jsonl", False) as log:
        how = data, data.task, cfg.seed, cfg.data.batch, cfg.data.augment, folder, options.jobs, log.add
        judged = Judged(space, *how)
        found = trained(judged, [space.pattern(each) for each in levels], options.training, progress)
        scores = {name: QUALITIES[name](judged, options.own(name))(levels) for name in qualities}
        n_layers = -QUALITIES["depth"](judged, options.own("depth"))(levels)
    rows = pd.DataFrame([each.model_dump(include={"top1", "loss", "macs", "params", "seconds"}) for each in found])
    kept = {"macs_kept": rows.macs / whole, "params_kept": rows.params / params(net)(net.widths)}
    return rows.assign(**kept, n_layers=n_layers, **scores)


# ---- patterns --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explained:
    """A pattern, its costs, and for each of its decisions the costs without it, as fractions of the pattern's."""

    pattern: Pattern
    space: Space
    costs: Dict[str, Tuple[float, float]]  # of the original network, and of the pattern
    rows: List[Dict[str, Any]]  # decision, own, value; per cost, the cost without the decision over the pattern's


def explained(path: Path, model: Optional[Path] = None) -> Explained:
    """Explain a pattern file. UserError: it names what its network does not have, or `model` is of another network."""
    pattern = patterns.read(path)
    net = open_network(pattern.network, pattern.input, pattern.classes, seed=0)
    space = Space(net, SpaceOptions())
    values = space.resolved(pattern.decisions)
    costs: Dict[str, Callable[[Network], Cost]] = dict(COUNTED)
    if model is not None:
        found = latency.load(model)
        if found.sizes != net.widths:
            wrong = f"is for '{found.network}', but the pattern is for '{net.name}' with other groups or widths"
            raise UserError(f"{model}: {wrong}; sample and fit one for this network", "search.other")
        costs["latency"] = found.cost
    whole = space.network(values)
    of_all = {name: (cost(net)(net.widths), cost(whole)(whole.widths)) for name, cost in costs.items()}
    rows = []
    for name, own, value in patterns.changes(space, pattern):
        without = space.network({**values, name: own})
        parts = {key: cost(without)(without.widths) / of_all[key][1] for key, cost in costs.items()}
        rows.append({"decision": name, "own": own, "value": value, **parts})
    return Explained(pattern, space, of_all, rows)


def transfer(
    path: Path, network: str, shape: Optional[Sequence[int]], classes: Optional[int], round_to: int
) -> Pattern:
    """Transfer a pattern to another network, input size or number of classes: blocks are kept as they are, and widths
    as fractions of each group's own. UserError: the other network has none of the layers that the pattern names."""
    pattern = patterns.read(path)
    net = open_network(pattern.network, pattern.input, pattern.classes, seed=0)
    other = open_network(network, shape or pattern.input, classes or pattern.classes, seed=0)
    return patterns.transferred(pattern, Space(net, SpaceOptions()), Space(other, SpaceOptions(), round_to))
