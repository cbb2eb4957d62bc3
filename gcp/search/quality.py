"""Qualities, which measure how good an architecture is: by training it, with a supernet, or without any training.

A quality scores many architectures at once and gives one number each, larger is better. The `images` of a `Judged`
count what it has cost.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
from pydantic import Field

from gcp.cost.analytic import macs, params
from gcp.cost.base import Cost, Term
from gcp.cost.layers import layers
from gcp.errors import UserError
from gcp.options import Options
from gcp.registry import Registry
from gcp.search import zero_shot
from gcp.search.candidates import Judged, TrainingOptions, trained
from gcp.search.space import Levels
from gcp.seeds import Stream

Scores = Callable[[Levels], np.ndarray]
QUALITIES: Registry[Callable[[Judged, Any], Scores]] = Registry("quality")
# Facts of an entry. `label`: its name in tables. `is_cheap`: can score thousands. `is_control`: others must beat it.

REFERENCES = 1000  # random architectures whose standard deviation is the unit of zero-shot scores


class SupernetOptions(Options):
    """How the supernet is trained, and how architectures are compared by it."""

    epochs: float = Field(10.0, gt=0, le=10**4, description="epochs, above 0")
    lr: float = Field(0.015, gt=0, le=1000, description="highest learning rate, above 0; then a cosine to zero")
    momentum: float = Field(0.9, ge=0, lt=1, description="in [0, 1)")
    wd: float = Field(5e-5, ge=0, le=1000, description="weight decay, 0 or more")
    hold: int = Field(8, ge=1, le=10**4, description="consecutive steps that train the same architecture")
    images: int = Field(1024, ge=1, le=10**6, description="validation images that architectures are compared on")

    def n_steps(self, n_batches: int) -> int:
        """The number of steps, with `n_batches` batches per epoch; at least 1."""
        return max(1, round(self.epochs * n_batches))


@QUALITIES.register("trained", TrainingOptions, label="Trained for a while", is_cheap=False, is_control=False)
def by_training(judged: Judged, options: TrainingOptions) -> Scores:
    """Minus the validation loss after a short training from new weights ("multi-shot"): finer-grained than accuracy.

    It is minus infinity for an architecture whose training diverged.
    """

    def score(levels: Levels) -> np.ndarray:
        found = trained(judged, [judged.space.pattern(each) for each in levels], options)
        return np.array([-np.inf if each.loss is None else -each.loss for each in found])

    return score


@QUALITIES.register("supernet", SupernetOptions, label="Supernet", is_cheap=False, is_control=False)
def by_supernet(judged: Judged, options: SupernetOptions) -> Scores:
    """Minus the validation loss with a supernet's weights and batch statistics ("single-shot").

    The supernet is trained once for all experiments with the same data, space and options.
    """
    from gcp.backend.engine import mx  # noqa: F401
    from gcp.train.slimmable import loss_by_batch_statistics
    from gcp.train.tasks import TASKS

    store = _supernet(judged, options)
    n, batches = 0, []
    for x, y, valid in judged.data.validation.batches(judged.batch):
        if n < options.images:
            batches.append((x[:valid], y[:valid]))
            n += valid

    @lru_cache(maxsize=None)
    def loss(level: Tuple[int, ...]) -> float:
        net, _ = store.network(judged.space.pattern(level))
        judged.images["supernet, comparing"] += n
        return loss_by_batch_statistics(net, TASKS[judged.task], batches)

    return lambda levels: -np.array([loss(tuple(map(int, each))) for each in levels])


def _supernet(judged: Judged, options: SupernetOptions) -> Any:
    """The store of the trained supernet's weights."""
    from gcp.backend.files import load_arrays, save_arrays
    from gcp.search.supernet import VALUE, SupernetStep
    from gcp.storage import locked
    from gcp.train import loop, schedules
    from gcp.train.tasks import TASKS

    space, data, seed = judged.space, judged.data, Stream.ARCHITECTURES.seed(judged.seed, 2)
    apart = {"images"}
    # With a multiplier, the widths also depend on what they are rounded to.
    key = f"{space.decisions} {sorted(space.fixed.items())} {space.round_to} "
    key += f"{judged.batch} {judged.augment} {judged.seed}"
    key = hashlib.sha256((key + options.model_dump_json(exclude=apart)).encode()).hexdigest()[:8]
    path, checkpoint = (Path(f"{judged.folder / f'supernet-{key}'}.{end}") for end in ("params", "checkpoint"))
    step = SupernetStep(space, TASKS[judged.task], options, seed)
    n_steps = options.n_steps(data.train.n_batches(judged.batch))
    judged.images["supernet"] += n_steps * judged.batch
    with locked(judged.folder, f".{path.name}.lock"):
        if path.exists():
            step.restore(load_arrays(path))
            return step.store
        batches = loop.Batches(data.train, judged.batch, seed, judged.augment)
        rates = schedules.cosine(options.lr, n_steps)

        def say(**facts: Any) -> None:
            judged.log("epoch", stage="supernet", **facts)

        loop.fit(step, batches, rates, name="supernet", checkpoint=checkpoint, log=say)
        step.state()
        save_arrays(path, {VALUE + key: value for key, value in step.store.arrays.items()})
        checkpoint.unlink(missing_ok=True)
    return step.store


@QUALITIES.register("trainability", Options, label="Trainability", is_cheap=True, is_control=False)
def by_trainability(judged: Judged, options: Options) -> Scores:
    """How close the Jacobians of an architecture's segments are to isometries: see `zero_shot.trainability`."""
    known: Dict[tuple, float] = {}
    return judged.space.price(lambda net: zero_shot.trainability(net, known))


@QUALITIES.register("entropy", Options, label="Entropy", is_cheap=True, is_control=False)
def by_entropy(judged: Judged, options: Options) -> Scores:
    """See `zero_shot.entropy`."""
    return judged.space.price(zero_shot.entropy)


@QUALITIES.register("zero_shot", Options, label="Trainability and entropy", is_cheap=True, is_control=False)
def by_both(judged: Judged, options: Options) -> Scores:
    """The sum of trainability and entropy, each divided by its standard deviation over random architectures."""
    parts = [QUALITIES[name](judged, options) for name in ("trainability", "entropy")]
    rng = np.random.default_rng(Stream.ARCHITECTURES.seed(judged.seed, 3))
    spreads = [float(part(judged.space.random(REFERENCES, rng)).std()) for part in parts]
    return lambda levels: sum(part(levels) / max(spread, 1e-12) for part, spread in zip(parts, spreads))


@QUALITIES.register("macs", Options, label="MACs", is_cheap=True, is_control=True)
def by_macs(judged: Judged, options: Options) -> Scores:
    """Multiply-accumulates: a control."""
    return judged.space.price(macs)


@QUALITIES.register("params", Options, label="Params", is_cheap=True, is_control=True)
def by_params(judged: Judged, options: Options) -> Scores:
    """Parameters: a control."""
    return judged.space.price(params)


@QUALITIES.register("depth", Options, label="Fewest layers", is_cheap=True, is_control=True)
def by_depth(judged: Judged, options: Options) -> Scores:
    """Minus the number of conv and dense layers: a control, since fewer layers learn faster in a short training."""
    return judged.space.price(lambda net: Cost([Term(each.groups, lambda *_: -1.0, each.name) for each in layers(net)]))


def additive(space: Any, levels: Levels, scores: np.ndarray, ridge: float = 1.0) -> Tuple[Dict[str, np.ndarray], float]:
    """Gains of each level of each decision by least squares on some architectures' scores, and the fit's R squared.

    It approximates a quality that is not a sum by one, for exact solvers: ridge regression on the chosen levels,
    without architectures whose score is not finite. UserError: none is.
    """
    known = np.isfinite(scores)
    if not known.any():
        wrong = f"none of {len(scores)} architectures could be judged: all diverged"
        raise UserError(f"{wrong}; lower prune.architecture.training.lr", "quality.diverged")
    levels, scores = levels[known], scores[known]
    columns: List[np.ndarray] = [levels[:, k] == at for k, n in enumerate(space.sizes) for at in range(n)]
    x, mean = np.stack(columns, 1).astype(np.float64), scores.mean()
    x = x - x.mean(0)
    found = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ (scores - mean))
    left = float(((scores - mean - x @ found) ** 2).sum() / max(((scores - mean) ** 2).sum(), 1e-300))
    parts = np.split(found, np.cumsum(space.sizes)[:-1])
    return dict(zip(space.names, parts)), 1 - left
