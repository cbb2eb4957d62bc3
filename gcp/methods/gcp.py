"""GCP: regularise, prune by global importance, recover, T times over (Khetan & Karnin 2020, section 4).

In: a trained network, a budget, data. Out: a network that is really smaller, trained as far as eq. 7 goes; all
weights are fine-tuned elsewhere. Also here: ranking channels of all groups together under a budget.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import numpy as np

from gcp import runtime
from gcp.cost.base import Budget, Cost, fit_to_measured_budget
from gcp.graph.network import Network, fold_masks, rescale, scale_arrays, shrink, with_masks
from gcp.methods.criteria import (
    SCORING_BATCH,
    _variances,
    paper_scores,
    relative_scores,
    scoring_batches,
    taylor_scores,
)
from gcp.methods.select import select
from gcp.train import checkpoints, evaluation, loop, optimisers, schedules
from gcp.train.distributed import workers
from gcp.train.proximal import ProximalSGD

# ---- regularise: proximal gradient ---------------------------------------------------------------------------------


def channel_penalties(net: Network, cost: Cost) -> Dict[str, float]:
    """c_g of eq. 6: the drop in total cost when one channel of group g goes, scaled to mean 1 over groups."""
    drop = cost.marginal(net.widths)
    mean = float(np.mean(list(drop.values())))
    return {name: value / mean for name, value in drop.items()}


# ---- the schedule --------------------------------------------------------------------------------------------------


def fraction_kept(t: int, n: int, target: float, schedule: str) -> float:
    """Fraction of the original cost to keep after iteration t of n: equal steps (the paper's) or equal ratios."""
    return 1 - t / n * (1 - target) if schedule == "equal" else target ** (t / n)


def absolute_penalty(net: Network, lam: float, lr: float, n_steps: int) -> float:
    """The lambda of eq. 6 for a relative one, so that one value of `prune.lam` means the same on every network.

    At `lam` = 1 a channel of mean scale and mean cost, with no gradient to hold it, just reaches zero in `n_steps`.
    """
    scales = np.concatenate([np.sqrt(_variances(net, g.norms)) for g in net.groups if g.norms])
    return lam * float(scales.mean()) / (lr * n_steps)


def gcp(net: Network, budget: Budget, data, cfg, folder: Path, log: Callable[..., None]) -> Tuple[Network, List[dict]]:
    """Prune by T iterations of regularise, prune, recover; returns the small network and a row per iteration.

    `cfg` is the whole configuration; `folder` takes the networks and checkpoints of the phases (one that is there
    is not run again); `log(event, **values)` gets one call per epoch and per iteration. With several values of
    `prune.lam` the first iteration is run with each, and the lowest validation loss after recovering decides.
    """
    lams, rows = list(cfg.prune.lam), []
    for t in range(1, cfg.prune.iterations + 1):
        tried = []
        for lam in lams:
            try:
                tried.append(_iteration(net, t, lam, budget, data, cfg, folder / f"gcp-{t}-lam{lam:g}", log))
            except optimisers.DivergedError:
                if len(lams) == 1:
                    raise
        if not tried:
            raise optimisers.DivergedError(
                f"GCP iteration {t}: the loss diverged for every prune.lam of {lams}; give "
                "smaller ones, or a smaller prune.lr"
            )
        net, row = min(tried, key=lambda item: item[1]["loss_recovered"])
        row = {
            **row,
            "images": sum(r["images"] for _, r in tried),
            "tried": [{"lam": r["lam"], "loss_recovered": r["loss_recovered"]} for _, r in tried],
        }
        lams = [row["lam"]]
        rows.append(row)
        log("iteration", **row)
    return net, rows


def _iteration(
    net: Network, t: int, lam: float, budget: Budget, data, cfg, prefix: Path, log: Callable[..., None]
) -> Tuple[Network, dict]:
    """One regularise, prune, recover (sections 4.3 and 4.4)."""
    p, batch = cfg.prune, cfg.data.batch
    limit = fraction_kept(t, p.iterations, budget.target, p.schedule) * budget.original
    n_regularise, n_recover = (round(n * data.train.n_batches(batch)) for n in (p.regularise_epochs, p.recover_epochs))
    n_regularise = max(1, n_regularise)
    net = rescale(with_masks(net))
    variables, penalties = scale_arrays(net), channel_penalties(net, budget.price)
    strength = absolute_penalty(net, lam, p.lr, n_regularise)

    def phase(net: Network, name: str, number: int, **how) -> Network:
        if how["n_steps"] == 0:
            return net
        return checkpoints.stage(
            Path(f"{prefix}-{name}"),
            lambda checkpoint: (
                loop.fit(
                    net,
                    data.train,
                    name=f"GCP {t}/{p.iterations} {name}",
                    batch=batch,
                    trainable=variables,
                    seed=runtime.hash_seed(cfg.seed, t, number),
                    augment=cfg.data.augment,
                    checkpoint=checkpoint,
                    on_epoch=lambda **facts: log("epoch", stage=f"{prefix.name}-{name}", **facts),
                    **how,
                )[0],
                {},
            ),
        )[0]

    dense = net
    net = phase(
        net,
        "regularise",
        1,
        n_steps=n_regularise,
        lr=schedules.constant(p.lr),
        frozen_statistics=True,
        optimiser=lambda block: ProximalSGD(dense, block, strength, penalties, p.momentum),
    )
    regularised = evaluation.evaluate(net, data.validation)
    n_scored = 0
    if p.score == "paper":
        scores = paper_scores(net)
    elif p.score == "relative":
        scores = relative_scores(net, budget.price)
    else:
        n_batches = scoring_batches(len(data.train))
        rank, n = workers().part  # batch k is worker k mod n's
        shuffled = data.train.batches(n * SCORING_BATCH, seed=(runtime.hash_seed(cfg.seed, t, 3), 0), part=(rank, n))
        own = islice(shuffled, len(range(rank, n_batches, n)))
        scores, n_scored = taylor_scores(net, budget.price, own), n_batches * SCORING_BATCH

    def cut(_: Path) -> Tuple[Network, dict]:
        small, timings = fit_to_measured_budget(
            budget, limit, lambda aim: shrink(net, select(scores, budget.cost, aim, budget.round_to, p.max_cut or 1.0))
        )
        return small, {"timings": timings}

    # What a clock decided has to be kept: a run that goes on could decide otherwise.
    net, found = cut(prefix) if budget.measure is None else checkpoints.stage(Path(f"{prefix}-cut"), cut)
    pruned = evaluation.evaluate(net, data.validation)
    net = fold_masks(
        phase(
            net,
            "recover",
            2,
            n_steps=n_recover,
            lr=schedules.cosine(p.recover_lr, n_recover),
            optimiser=lambda block: optimisers.SGD(block, p.momentum),
        )
    )
    recovered = evaluation.evaluate(net, data.validation)
    if recovered["loss"] is None:
        raise optimisers.DivergedError(f"GCP iteration {t}: the validation loss is not finite after recovering")
    row = {
        "iteration": t,
        "lam": lam,
        "penalty": strength,
        "cost_kept": budget.cost(net.widths) / budget.original,
        "loss_regularised": regularised["loss"],
        "loss_pruned": pruned["loss"],
        "loss_recovered": recovered["loss"],
        "top1_recovered": recovered["top1"],
        "widths": net.widths,
        "images": (n_regularise + n_recover) * batch + n_scored,
        **({} if budget.measure is None else found),
    }
    return net, row
