"""GCP: regularise, prune by global importance, recover, T times over (Khetan & Karnin 2020, section 4).

In: a trained network, a budget, data. Out: a network that is really smaller, trained as far as eq. 7 goes; all
weights are fine-tuned elsewhere. Also here: ranking channels of all groups together under a budget.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, Set, Tuple

import mxnet as mx
import numpy as np
from mxnet import autograd

from gcp.backend.gluon import auxiliary, to_block
from gcp.cost.base import Budget, Cost, allowed, meet
from gcp.errors import UserError
from gcp.graph.network import (
    NORM,
    Keep,
    Network,
    Widths,
    fold_masks,
    has_weight,
    is_depthwise,
    rescale,
    shrink,
    squared_input_norms,
    with_masks,
)
from gcp.train import training
from gcp.train.distributed import workers

# Squared slopes are averaged over batches: of the same images, many small batches tell more than a few large ones.
SCORING_BATCH = 16


# ---- importance ---------------------------------------------------------------------------------------------------


def _variances(net: Network, sources) -> np.ndarray:
    """Sum of squared scales of the sources, per channel, float64."""
    return sum(net.arrays[net.norm_arrays(s)[0]].reshape(-1).astype(np.float64) ** 2 for s in sources)


def paper_scores(net: Network) -> Dict[str, np.ndarray]:
    """Eq. 3: `gamma_j^2 * ||W[:, j]||_F^2` per channel of each group.

    A tied group's producers are summed, and so are its readers; the score is the product of the two sums. Depthwise
    kernels scale a channel but do not spread it, so only convs and dense layers count as readers.
    """
    scores = {g.name: np.zeros(g.size) for g in net.groups}
    for stream in net.streams:
        readers = [r for r in stream.readers if not is_depthwise(net, net.index[r])]
        if readers:
            read = sum(squared_input_norms(net, r) for r in readers)
            scores[stream.group] += _variances(net, stream.sources) * read
    return scores


def relative_scores(net: Network, cost: Cost) -> Dict[str, np.ndarray]:
    """Variance that the readers lose with a channel, as a share of what they would have left, per unit of cost.

    For output k of a reader, channel j carries `v_j ||W[k,j]||^2 / sum_i v_i ||W[k,i]||^2` of its variance, with `v`
    the summed squared scales that arrive there. Shares are averaged over k and summed over the readers; unlike eq.
    3's product of sums they grow with the number of readers only as the cost of a tied group does. A share is
    then taken of what remains once the group's lower channels are gone (so the last channel of a group counts for
    all of it: ranking by plain shares, which sum to 1 in every layer, emptied whole layers at once), and divided
    by what one channel of the group costs.
    """
    shares = {g.name: np.zeros(g.size) for g in net.groups}
    n_readers = dict.fromkeys(shares, 0)
    for stream in net.streams:
        for reader in stream.readers:
            if is_depthwise(net, net.index[reader]):
                continue
            w = net.arrays[net.weight(reader)].astype(np.float64)
            v = _variances(net, stream.reach[reader])
            part = (w.reshape(len(w), len(v), -1) ** 2).sum(2) * v
            total = part.sum(1, keepdims=True)
            shares[stream.group] += (part / np.where(total > 0, total, 1.0)).mean(0)
            n_readers[stream.group] += 1
    per_channel = cost.marginal(net.widths)
    scores = {}
    for name, share in shares.items():
        order = np.argsort(share, kind="stable")
        left = np.cumsum(share[order][::-1])[::-1]
        scores[name] = np.empty_like(share)
        scores[name][order] = n_readers[name] * share[order] / np.where(left > 0, left, 1.0) / per_channel[name]
    return scores


def taylor_scores(net: Network, cost: Cost, batches: Iterable) -> Dict[str, np.ndarray]:
    """What the loss would change without a channel, to first order and squared, per unit of cost.

    With a factor m on a channel (on scale and shift of all norms of its group), `dL/dm` at m = 1 is
    `sum gamma dL/dgamma + beta dL/dbeta`: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR
    2019, eq. 8, with gates behind batch norm. Its square is averaged over the batches (x, y, n), statistics frozen, and
    divided by what one channel of the group costs. Eq. 3 sees the layers next to a channel; this sees what the loss
    makes of them: a narrow stem starves all that follows. Several workers each bring batches of their own.
    """
    ctx = training.device()
    block = to_block(net, ctx, frozen_statistics=True, trainable=scale_arrays(net))
    params, sums, n_batches = block.collect_params(), {g.name: np.zeros(g.size) for g in net.groups}, 0
    for x, y, _ in batches:
        with autograd.record():
            loss = training.smoothed_loss(block(mx.nd.array(x, ctx)), mx.nd.array(y, ctx), 0.0).mean()
        loss.backward()
        for g in net.groups:
            arrays = [params[name] for norm in g.norms for name in net.norm_arrays(norm) if name is not None]
            by_mask = sum((p.data() * p.grad()).reshape(-1) for p in arrays)
            sums[g.name] += by_mask.asnumpy().astype(np.float64) ** 2
        n_batches += 1
    n_batches, *flat = workers().total([n_batches, *np.concatenate(list(sums.values()))])
    ends = np.cumsum([g.size for g in net.groups])
    totals = dict(zip(sums, np.split(np.array(flat), ends[:-1])))
    per_channel = cost.marginal(net.widths)
    return {name: total / max(1, n_batches) / per_channel[name] for name, total in totals.items()}


def select(scores: Mapping[str, np.ndarray], cost: Cost, limit: float, round_to: int = 1, max_cut: float = 1.0) -> Keep:
    """Rank the channels of all groups together and drop the lowest until `cost(widths) <= limit`.

    With `round_to` > 1 channels go in blocks, so that every width stays a multiple of it (or the whole group) and
    never falls below it; a block ranks by its mean score. The last block may overshoot: dropped blocks that still
    fit come back, best first. No group is emptied. No group loses more than `max_cut` of its channels, unless all have
    lost that much and the limit is not reached. UserError if it cannot be reached at all.
    """
    order = {name: np.argsort(-s, kind="stable") for name, s in scores.items()}
    sizes = {name: len(s) for name, s in scores.items()}
    blocks: List[Tuple[float, int, str, int]] = []  # mean score, tie-break, group, width once the block is gone
    for number, (name, s) in enumerate(scores.items()):
        width = sizes[name]
        while width > min(round_to, sizes[name]):
            smaller = allowed(width - 1, sizes[name], round_to)
            value = float(s[order[name][smaller:width]].mean())
            blocks.append((value, number, name, smaller))
            width = smaller
    # A block can only go after the blocks below it in its own group; sorted scores see to that, except in ties. What
    # is beyond `max_cut` goes last.
    blocks.sort(key=lambda b: (b[3] < (1 - max_cut) * sizes[b[2]], b[0], b[1], -b[3]))

    def widths_after(n: int) -> Widths:
        widths = dict(sizes)
        for _, _, name, smaller in blocks[:n]:
            widths[name] = smaller
        return widths

    low, high = 0, len(blocks)
    while low < high:  # the cost falls with every block: bisect the number of blocks to drop
        middle = (low + high) // 2
        low, high = (low, middle) if cost(widths_after(middle)) <= limit else (middle + 1, high)
    widths = widths_after(low)
    if cost(widths) > limit * (1 + 1e-12):
        raise UserError(
            f"a cost of {limit:.6g} cannot be reached: {cost(widths):.6g} is left with every group at its "
            f"smallest width (round_to {round_to})"
        )

    def larger(name: str) -> Widths:
        width = widths[name] + round_to if widths[name] % round_to == 0 else sizes[name]
        return {**widths, name: min(width, sizes[name])}

    held = set()
    for _, _, name, smaller in reversed(blocks[:low]):
        if name in held:
            continue
        if smaller == widths[name] and cost(larger(name)) <= limit:
            widths = larger(name)
        else:
            held.add(name)
    grown = True
    while grown:  # more channels in no more time, which only a latency can have: a number of blocks that divides well
        grown = False
        for name in sizes:
            if widths[name] < sizes[name] and cost(larger(name)) <= cost(widths):
                widths, grown = larger(name), True
    return {name: np.sort(order[name][: widths[name]]) for name in sizes}


# ---- regularise: proximal gradient ---------------------------------------------------------------------------------


def channel_penalties(net: Network, cost: Cost) -> Dict[str, float]:
    """c_g of eq. 6: the drop in total cost when one channel of group g goes, scaled to mean 1 over groups."""
    drop = cost.marginal(net.widths)
    mean = float(np.mean(list(drop.values())))
    return {name: value / mean for name, value in drop.items()}


def scale_arrays(net: Network) -> Set[str]:
    """Names of all scales, shifts and masks, and of the output layer: the variables of eqs. 6 and 7."""
    aux = auxiliary(net)
    names = {net.nodes[j].name for n in net.nodes if n.op in NORM for j in n.inputs[1:3]}
    names |= {net.norm_arrays(n)[0] for g in net.groups for n in g.norms}
    last = max(i for i, n in enumerate(net.nodes) if has_weight(n))
    layer = net.nodes[last].name
    names |= {net.weight(layer)} | ({net.bias(layer)} if net.bias(layer) is not None else set())
    return names - aux


class ProximalSGD:
    """Proximal gradient on scales and masks (eq. 6), plain SGD on everything else that is trainable.

    After each momentum step, `gamma <- sign(gamma) max(|gamma| - lr lam c_g, 0)`. A tied group has one mask m for
    its norms, `gamma_p = m gamma^_p`, `beta_p = m beta^_p`; m takes gamma's place in the penalty. It starts at the
    root of the summed squared scales, so that m^2 is the group's score where the readers have unit norm, and
    masks and scales are in the same units. All scales are one flat vector, all shifts another, all masks a third:
    a step costs some 30 small operators whatever the depth of the network.
    """

    def __init__(self, net: Network, block, lam: float, penalties: Mapping[str, float], momentum: float) -> None:
        params = block.collect_params()
        norms = [(g, net.norm_arrays(n)) for g in net.groups for n in g.norms]
        self._gammas = [params[gamma] for _, (gamma, _) in norms]
        self._betas = [params[beta] for _, (_, beta) in norms if beta is not None]
        self._momentum = momentum
        own = {name for _, pair in norms for name in pair}
        self._rest = training.SGD(block, momentum, only=set(params.keys()) - own)
        ctx = self._gammas[0].list_ctx()[0]
        self._outer = {"gamma": _joined_gradients(self._gammas)}
        if self._betas:  # none where every norm is a mask
            self._outer["beta"] = _joined_gradients(self._betas)

        # Each entry of the flat vectors names its mask; slot 0 is a constant 1 for channels of untied groups.
        first, n_slots, mask_threshold = {}, 1, [np.zeros(1)]
        for g in net.groups:
            if len(g.norms) > 1:
                first[g.name] = n_slots + np.arange(g.size)
                n_slots += g.size
                mask_threshold.append(np.full(g.size, lam * penalties[g.name]))
        slots = [first.get(g.name, np.zeros(g.size)).astype(np.int64) for g, _ in norms]
        threshold = [np.full(g.size, 0.0 if g.name in first else lam * penalties[g.name]) for g, _ in norms]
        beta_slots = [s for s, (_, (_, beta)) in zip(slots, norms) if beta is not None]
        gamma, of_gamma = _joined(self._gammas), np.concatenate(slots)
        m = np.zeros(n_slots)
        np.add.at(m, of_gamma, gamma**2)
        m = np.where(m > 0, np.sqrt(m), 1.0)
        m[0] = 1.0

        def to_device(values: np.ndarray, dtype: str = "float32") -> mx.nd.NDArray:
            return mx.nd.array(values, ctx, dtype=dtype)

        self._vectors = {"gamma": to_device(gamma / m[of_gamma]), "mask": to_device(m)}
        self._slots = {"gamma": to_device(of_gamma, "int32")}
        self._threshold = {
            "gamma": to_device(np.concatenate(threshold)),
            "mask": to_device(np.concatenate(mask_threshold)),
        }
        if self._betas:
            of_beta = np.concatenate(beta_slots)
            self._vectors["beta"] = to_device(_joined(self._betas) / m[of_beta])
            self._slots["beta"] = to_device(of_beta, "int32")
        self._velocity = {k: mx.nd.zeros_like(v) for k, v in self._vectors.items()}
        self._written = {"gamma": _flat_views(self._gammas), "beta": _flat_views(self._betas)}
        self._tied = bool(first)
        if self._tied:
            for v in self._vectors.values():
                v.attach_grad()

    def step(self, lr: float, batch: int) -> None:
        """One proximal-gradient update of scales, shifts and masks, one SGD update of the rest."""
        outer = self._outer
        if self._tied:  # the chain rule through gamma = m gamma^, beta = m beta^
            with autograd.record():
                products = [self._vectors[k] * mx.nd.take(self._vectors["mask"], self._slots[k]) for k in outer]
            autograd.backward(products, list(outer.values()))
            gradients = {k: v.grad for k, v in self._vectors.items()}
        else:
            gradients = outer
        for key, gradient in gradients.items():
            value = self._vectors[key]
            mx.nd.sgd_mom_update(
                value,
                gradient,
                self._velocity[key],
                out=value,
                lr=lr,
                momentum=self._momentum,
                rescale_grad=1.0 / batch,
            )
            if key in self._threshold:
                shrunk = mx.nd.relu(mx.nd.abs(value) - lr * self._threshold[key])
                mx.nd.elemwise_mul(mx.nd.sign(value), shrunk, out=value)
        if self._tied:
            self._vectors["mask"][0:1] = 1.0
        self._write()
        self._rest.step(lr, batch)

    def gradients(self) -> List[mx.nd.NDArray]:
        """One flat array of all scales' gradients, one of all shifts', and those of the rest."""
        return [*self._outer.values(), *self._rest.gradients()]

    def _write(self) -> None:
        """Put scales and shifts, masks multiplied in, back into the block's parameters."""
        for key in self._outer:
            value, (starts, outputs) = self._vectors[key], self._written[key]
            if self._tied:
                value = value * mx.nd.take(self._vectors["mask"], self._slots[key])
            if len(outputs) == 1:
                value.copyto(outputs[0])
            else:
                mx.nd._internal._split_v2(value, indices=starts, axis=0, out=outputs)

    def state(self) -> Dict[str, mx.nd.NDArray]:
        """Vectors, their velocities and the velocities of the rest."""
        return {
            **{f"value:{k}": v for k, v in self._vectors.items()},
            **{f"velocity:{k}": v for k, v in self._velocity.items()},
            **{f"rest:{k}": v for k, v in self._rest.state().items()},
        }

    def restore(self, state: Dict[str, mx.nd.NDArray]) -> None:
        """Take over what `state` gave."""
        for k in self._vectors:
            self._vectors[k][:] = state[f"value:{k}"]
            self._velocity[k][:] = state[f"velocity:{k}"]
        self._rest.restore({k[len("rest:") :]: v for k, v in state.items() if k.startswith("rest:")})


def _flat_views(params) -> Tuple[Tuple[int, ...], List[mx.nd.NDArray]]:
    """Where each parameter starts in their flat vector, and each one's memory as a vector."""
    starts = np.cumsum([0] + [int(np.prod(p.shape)) for p in params[:-1]])
    return tuple(starts.tolist()), [p.data().reshape(-1) for p in params]


def _joined_gradients(params) -> mx.nd.NDArray:
    """One flat vector that backward writes the gradients of all `params` into, in place of their own arrays.

    To be called before the block's first backward, which binds a static graph to the arrays it finds. Joining them in
    each step took 4.5 of 176 ms (ResNet-50, 64 px, batch 16). `p.data().grad` is a part of it; `p.grad()` is the array
    of before, which nothing writes any more.
    """
    sizes = [int(np.prod(p.shape)) for p in params]
    flat = mx.nd.zeros(sum(sizes), params[0].list_ctx()[0])
    ends = np.cumsum(sizes).tolist()
    parts = [flat[end - size : end].reshape(p.shape) for p, size, end in zip(params, sizes, ends)]
    autograd.mark_variables([p.data() for p in params], parts, "write")
    return flat


def _joined(params) -> np.ndarray:
    return np.concatenate([p.data().asnumpy().reshape(-1) for p in params]).astype(np.float64)


# ---- the schedule --------------------------------------------------------------------------------------------------


def fraction_kept(t: int, n: int, target: float, schedule: str) -> float:
    """Fraction of the original cost to keep after iteration t of n: equal steps (the paper's) or equal ratios."""
    return 1 - t / n * (1 - target) if schedule == "equal" else target ** (t / n)


def scoring_batches(n_images: int) -> int:
    """How many batches `taylor_scores` looks at: a tenth of the images, 20 batches at least, or all there are."""
    n_all = -(-n_images // SCORING_BATCH)
    return min(n_all, max(20, n_all // 10))


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
            except training.DivergedError:
                if len(lams) == 1:
                    raise
        if not tried:
            raise training.DivergedError(
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
        return training.stage(
            Path(f"{prefix}-{name}"),
            lambda checkpoint: (
                training.fit(
                    net,
                    data.train,
                    name=f"GCP {t}/{p.iterations} {name}",
                    batch=batch,
                    trainable=variables,
                    seed=training.hash_seed(cfg.seed, t, number),
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
        lr=training.constant(p.lr),
        frozen_statistics=True,
        optimiser=lambda block: ProximalSGD(dense, block, strength, penalties, p.momentum),
    )
    regularised = training.evaluate(net, data.validation)
    n_scored = 0
    if p.score == "paper":
        scores = paper_scores(net)
    elif p.score == "relative":
        scores = relative_scores(net, budget.price)
    else:
        n_batches = scoring_batches(len(data.train))
        rank, n = workers().part  # batch k is worker k mod n's
        shuffled = data.train.batches(n * SCORING_BATCH, seed=(training.hash_seed(cfg.seed, t, 3), 0), part=(rank, n))
        own = islice(shuffled, len(range(rank, n_batches, n)))
        scores, n_scored = taylor_scores(net, budget.price, own), n_batches * SCORING_BATCH

    def cut(_: Path) -> Tuple[Network, dict]:
        small, timings = meet(
            budget, limit, lambda aim: shrink(net, select(scores, budget.cost, aim, budget.round_to, p.max_cut or 1.0))
        )
        return small, {"timings": timings}

    # What a clock decided has to be kept: a run that goes on could decide otherwise.
    net, found = cut(prefix) if budget.measure is None else training.stage(Path(f"{prefix}-cut"), cut)
    pruned = training.evaluate(net, data.validation)
    net = fold_masks(
        phase(
            net,
            "recover",
            2,
            n_steps=n_recover,
            lr=training.cosine(p.recover_lr, n_recover),
            optimiser=lambda block: training.SGD(block, p.momentum),
        )
    )
    recovered = training.evaluate(net, data.validation)
    if recovered["loss"] is None:
        raise training.DivergedError(f"GCP iteration {t}: the validation loss is not finite after recovering")
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
