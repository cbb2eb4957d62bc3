"""What an experiment starts from: data, an untrained network and a budget, all checked before anything is run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from gcp import runtime
from gcp.backend import clock
from gcp.backend.files import is_saved
from gcp.backend.zoo import open_network
from gcp.cost import latency
from gcp.cost.base import COSTS, Budget, Cost, Measure
from gcp.cost.measured import MEASUREMENT_TOLERANCE
from gcp.data.datasets import Data, Dataset
from gcp.data.datasets import load as open_data
from gcp.errors import UserError
from gcp.experiment.config import Config, Prune
from gcp.graph.network import Network
from gcp.graph.surgery import with_zero_residuals
from gcp.methods.base import whole_batches
from gcp.train import checkpoints, losses, optimisers
from gcp.train.distributed import process_group
from gcp.train.options import Recipe

SHOWN = 10  # skipped images that are listed
# To choose widths by measured latency, and for the record, a network is timed alternately with the dense one for about
# MEASURED_S seconds each, FEWEST to MOST times, until the mean ratio's relative standard error is at most PRECISION; a
# network that is a candidate for a limit, only until it misses the limit with the probability SURE.
MEASURED_S, FEWEST, MOST, PRECISION, SURE = 1.0, 3, 12, 0.01, 0.99


def load_data(cfg: Data, seed: int = 0) -> Dataset:
    """The configured data set; lists on stderr the images that had to be skipped."""
    data = open_data(cfg, seed)
    for why in data.skipped[:SHOWN]:
        warn(f"skipped: {why}")
    if data.skipped:
        warn(f"{len(data.skipped)} images of data '{cfg.name}' were skipped in all")
    return data


def plan(cfg: Config, data: Dataset) -> Tuple[Network, Budget]:
    """The network as it is before training, and the budget.

    UserError: the target cannot be reached, a network or latency model that the configuration names is missing or does
    not match, pruning takes more images than the epochs that include it, or the device cannot train in the dtype.
    """
    model = cfg.model
    if model.is_pattern:
        source = cfg.paper.starts_from or "CONFIG"
        fix = f"create it first with scripts/run.py {source} --set seed={cfg.seed} (and the same --overlay, if any)"
        raise UserError(
            f"model.name: no saved network matches '{model.name}' (seed {cfg.seed}); {fix}", "network.absent"
        )
    how = data.shape, len(data.classes), model.pretrained, cfg.seed, model.weights, model.new_head
    start = checkpoints.same_network(lambda: open_network(model.name, *how))
    if cfg.train.last_gamma_zero:
        start = with_zero_residuals(start)
    budget = budget_of(cfg, start, latency_model(cfg, start))
    for chosen in (cfg, *tried(cfg)):
        chosen.prune.options.check(start, budget)
    if cfg.finetune.includes_pruning:
        n, per_epoch = images_to_prune(cfg, len(data.train)), data.train.n_batches(cfg.data.batch)
        if n > (most := cfg.finetune.all_epochs * per_epoch * cfg.data.batch):
            raise beyond_epochs(cfg, n, most)
    for recipe in (cfg.train, cfg.finetune):
        optimisers.check_dtype(recipe.dtype)
        if recipe.teacher != "dense":
            teacher(recipe, data)
    return start, budget


def tried(cfg: Config) -> Iterator[Config]:
    """Yield the configuration with each choice, and each end of a range, of its search in turn."""
    for name, of in cfg.search_space().items() if cfg.search.trials else ():
        yield from (cfg.with_values({name: value}) for value in of.ends)


def images_to_prune(cfg: Config, n_train: int) -> int:
    """Upper bound on the images that pruning will train on or look at; how many depends on searched options.

    In a search over iterations all trials count, in a search over whole runs only one.
    """

    def count(of: Config) -> int:
        batch, wanted = of.data.batch, (of.prune.statistics_images, of.prune.reconstruction_images)
        return of.prune.options.n_images(n_train, batch, sum(whole_batches(n, n_train, batch) for n in wanted))

    return count(largest(cfg, count)) * (cfg.search.trials if cfg.search.per_iteration else 1)


def largest(cfg: Config, count: Callable[[Config], int]) -> Config:
    """The configuration with the values of its search that make the count largest."""
    for name, of in cfg.search_space().items() if cfg.search.trials else ():
        cfg = max((cfg.with_values({name: value}) for value in of.ends), key=count)
    return cfg


def images_to_finetune(cfg: Config, n_train: int, pruning: int) -> int:
    """Upper bound on the images of fine-tuning, if pruning takes `pruning` images."""

    def count(of: Config) -> int:
        return of.finetune.all_epochs * -(-n_train // of.data.batch) * of.data.batch

    return max(0, count(largest(cfg, count)) - pruning * cfg.finetune.includes_pruning)


def beyond_epochs(cfg: Config, taken: int, most: int) -> UserError:
    """The error if the epochs of fine-tuning are to include the images of pruning, but have fewer."""
    wrong = f"pruning by {cfg.prune.method} takes {taken:,} images, more than the {most:,} of the fine-tuning epochs"
    return UserError(
        f"finetune.includes_pruning: {wrong}; raise finetune.epochs, or prune with fewer images", "config.images"
    )


def budget_of(cfg: Config, start: Network, table: Optional[latency.LatencyModel] = None) -> Budget:
    """The budget that the configured target gives a network; `table` is the latency model, if one is configured."""
    how = cfg.prune

    def cost_of(name: str, net: Network = start) -> Cost:
        if name == "latency" and table is not None:
            return table.cost(net)
        kind = COSTS.options[name]
        return COSTS[name](net, kind(**{key: getattr(how, key) for key in kind.model_fields}))

    def counted(net: Network) -> Cost:
        return cost_of(how.counted, net)

    cost = counted(start)
    price = None if how.budget is None else cost_of(how.objective)
    original = cost(start.widths)
    round_to = table.granularity if how.round_to is None else how.round_to
    if not how.is_timed:
        return Budget(cost, original, how.target, round_to, price, cost_of=counted)
    return Budget(cost, original, _target(how, table), round_to, price, _clock(start, table, original), counted)


def _target(how: Prune, table: latency.LatencyModel) -> float:
    """The target as a fraction of the whole network's latency, configured as such, in milliseconds or as throughput."""
    whole_s, batch = table.reference_s, table.setup.batch
    if how.target_ms is None and how.target_images_per_second is None:
        return how.target
    asked_s = how.target_ms / 1e3 if how.target_ms else batch / how.target_images_per_second
    if asked_s > whole_s:
        whole = f"the {1e3 * whole_s:.4g} ms that the whole network takes"
        raise UserError(f"prune: {1e3 * asked_s:.4g} ms is more than {whole}; set a lower latency", "budget.target")
    return asked_s / whole_s


def _clock(start: Network, table: latency.LatencyModel, original: float) -> Measure:
    """The measured latency of a network, relative to that of `start`, in the model's units; see `Budget.measure`."""
    setup = clock.Setup(**dict(table.setup))

    def measure(net: Network, limit: float) -> Tuple[float, float]:
        kept, error = process_group().broadcast(lambda: relative_latency(start, net, setup, limit / original)[:2])
        return kept * original, error * original

    return measure


class RelativeLatency(NamedTuple):
    """A network's latency relative to a reference, its standard error, the reference's seconds, and if it is noisy."""

    kept: float
    error: float
    whole_s: float
    noisy: bool


def relative_latency(
    start: Network, net: Network, setup: clock.Setup, asked: Optional[float] = None
) -> RelativeLatency:
    """A network's latency relative to that of `start`, timed alternately.

    On a shared host, even this ratio varies by a few percent from one minute to the next, so it is measured until its
    mean is known to `PRECISION`. It is noisy if that is not reached, or if most of the measurements were noisy. With
    `asked`, a ratio, it is also enough to be `SURE` that the latency differs from it by more than
    `MEASUREMENT_TOLERANCE`, by a t-test.
    """
    from scipy import stats  # takes a third of a second to import

    measured = clock.against_reference(start, setup, 10, min_time_s=MEASURED_S, attempts=1)
    ratios: List[float] = []
    wholes: List[float] = []
    noisy, error = 0, np.inf
    while len(ratios) < FEWEST or (len(ratios) < MOST and error > PRECISION):
        row, whole_s = measured(net)
        ratios.append(row["latency_s"] / whole_s)
        wholes.append(whole_s)
        noisy += row["noisy"]
        kept = float(np.mean(ratios))
        if len(ratios) > 1:
            error = float(np.std(ratios, ddof=1) / kept / len(ratios) ** 0.5)
            if asked is not None and len(ratios) >= FEWEST:
                missed = abs(kept - asked) - MEASUREMENT_TOLERANCE * asked
                if missed > stats.t.ppf(SURE, len(ratios) - 1) * error * kept:
                    break
    is_noisy = error > PRECISION or 2 * noisy > len(ratios)
    return RelativeLatency(kept, error * kept, float(np.median(wholes)), is_noisy)


def latency_model(cfg: Config, start: Network) -> Optional[latency.LatencyModel]:
    """The configured latency model, if there is one.

    UserError: it is of another network, input size, processor or number of threads.
    """
    if cfg.prune.latency_model is None:
        return None
    return latency.load_for(Path(cfg.prune.latency_model), start, runtime.n_threads(cfg.threads), clock.hardware, warn)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def teacher(recipe: Recipe, data: Dataset, dense: Optional[Network] = None) -> Optional[losses.Teacher]:
    """The recipe's teacher, if it has one; `dense` is the network that `teacher: dense` refers to.

    UserError: there is no such network, or it has another number of classes than the data.
    """
    if recipe.teacher is None:
        return None
    net = dense
    if recipe.teacher != "dense":
        net = open_network(recipe.teacher, data.shape, None, pretrained=not is_saved(recipe.teacher))
    if net.n_classes != len(data.classes):
        wrong = f"'{recipe.teacher}' has {net.n_classes} classes, but data '{data.name}' has {len(data.classes)}"
        raise UserError(f"teacher: {wrong}; name a network that was trained on these data", "network.classes")
    return losses.Teacher(net, recipe.teacher_weight, recipe.teacher_temperature)
