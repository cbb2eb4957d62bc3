"""Importance criteria: one score per channel of every group, from the weights alone or from the loss."""

from __future__ import annotations

from typing import Callable, Dict, Iterable, Optional, Sequence

import numpy as np

from gcp.errors import UserError
from gcp.graph.channels import FROZEN, is_depthwise, is_scale
from gcp.graph.network import Network
from gcp.graph.surgery import filters, fold_gates, squared_input_norms, variances
from gcp.methods.base import Problem
from gcp.registry import Registry
from gcp.seeds import Stream

Scores = Dict[str, np.ndarray]  # per group, one number per channel; the lowest are removed first
# A criterion is registered as a function Problem -> Scores. With `per_cost=True`, its scores are divided by what a
# channel costs before groups are compared; `n_images(n_train)` is the number of images that it uses, given `n_train`
# training images; `check(net)` raises UserError if it cannot rank a network's channels.
CRITERIA: Registry[Callable[[Problem], Scores]] = Registry("criterion")

# Squared gradients are averaged over batches: many small batches tell more than a few large ones of the same images.
SCORING_BATCH = 16
FISHER_IMAGES = 1024  # images that `group_fisher` uses, one at a time


def check_criterion(criterion: str, net: Network) -> None:
    """Raise UserError if the criterion cannot rank the channels of this network."""
    getattr(CRITERIA[criterion], "check", lambda net: None)(net)


def ranked_by(criterion: str, problem: Problem, per_cost: Optional[bool] = None) -> Scores:
    """The scores by which the channels of all groups are ranked, per unit of cost if the criterion calls for it.

    `per_cost`, if given, overrides the criterion's own setting.
    """
    scores = CRITERIA[criterion](problem)
    if not (getattr(CRITERIA[criterion], "per_cost", False) if per_cost is None else per_cost):
        return scores
    per_channel = problem.budget.price.marginal(problem.net.widths)
    return {name: of / per_channel[name] for name, of in scores.items()}


# ---- importance ---------------------------------------------------------------------------------------------------


def unit_variances(net: Network) -> Dict[str, np.ndarray]:
    """The sum of the squared batch-norm scales of each unit of every group, float64."""
    scales = {n: np.square(net.arrays[net.norm_arrays(n)[0]], dtype=np.float64) for g in net.groups for n in g.norms}
    return net.by_unit(scales)


def absolute_penalty(net: Network, lam: float, lr: float, n_steps: int) -> float:
    """The lambda of eq. 6 for a relative one, so that one value of `prune.gcp.lam` means the same on every network.

    At `lam` = 1, a channel of mean scale and mean cost, with no gradient to hold it, just reaches zero in `n_steps`.
    """
    scales = np.concatenate([np.sqrt(v) for v in unit_variances(net).values()])
    return lam * float(scales.mean()) / (lr * n_steps)


def paper_scores(net: Network) -> Dict[str, np.ndarray]:
    """Eq. 3: `gamma_j^2 * ||W[:, j]||_F^2` for each unit of every group.

    In a tied group, the first factor is summed over the producers and the second over the readers; the score is the
    product of the two sums. Depthwise kernels scale a channel but do not spread it to others, so only convs and dense
    layers count as readers.
    """
    streams, arrays = net.streams, net.arrays
    made, bare, read = np.zeros(streams.n), np.zeros(streams.n), np.zeros(streams.n)
    for i, of in streams.sources.items():
        if is_scale(net, i):
            np.add.at(made, of, np.square(arrays[net.norm_arrays(net.nodes[i].name)[0]], dtype=np.float64).reshape(-1))
        elif is_depthwise(net, i):  # without a norm: the incoming variance times the kernel's squared norm
            np.add.at(made, of, variances(net)[i, 0].reshape(-1))
        else:
            bare[of] = 1.0
    for i, of in streams.readers.items():
        if not is_depthwise(net, i):
            np.add.at(read, of, squared_input_norms(net, net.nodes[i].name))
    score, total = np.where(made > 0, made, bare) * read, np.zeros(len(net.structure.group_of) + 1)
    np.add.at(total, streams.unit, score)
    return {g.name: total[g.start : g.start + g.size] for g in net.groups}


def relative_scores(net: Network) -> Dict[str, np.ndarray]:
    """The share of their output variance that the readers lose with a channel, relative to what they would have left.

    For output k of a reader, channel j carries `v_j ||W[k,j]||^2 / sum_i v_i ||W[k,i]||^2` of its variance, where `v`
    are the summed squared scales that arrive at the reader. Shares are averaged over k and summed over the readers;
    unlike the product of sums in eq. 3, they grow with the number of readers only as fast as the cost of a tied group.
    Each share is then taken of what remains once the group's lower-ranked channels are gone, so the last channel of a
    group accounts for all of it. (Ranking by plain shares, which sum to 1 in every layer, emptied whole layers at
    once.)
    """
    arriving, shares, calls = variances(net), {}, net.structure.calls
    n_readers = {g.name: len(g.consumers) for g in net.groups}
    for layer in dict.fromkeys(layer for g in net.groups for layer in g.consumers):
        call = calls[net.index[layer]]
        w = call.operator.taps(call, np.square(net.arrays[net.weight(layer)], dtype=np.float64)).sum(3)
        v = call.operator.read(call, arriving.get(call.node.inputs[0], np.ones((1,) * len(call.shapes[0]))))
        part = w * v.reshape(len(w), 1, -1)
        total = part.sum(2, keepdims=True)
        shares[layer] = (part / np.where(total > 0, total, 1.0)).mean(1).reshape(-1)
    scores = {}
    for name, share in net.by_unit(shares, made=False).items():
        order = np.argsort(share, kind="stable")
        left = np.cumsum(share[order][::-1])[::-1]
        scores[name] = np.empty_like(share)
        scores[name][order] = n_readers[name] * share[order] / np.where(left > 0, left, 1.0)
    return scores


def taylor_scores(step, batches: Iterable, seed: int = 0) -> Scores:
    """The squared first-order estimate of how much the loss changes without a channel.

    With a factor m on a channel (on the scale and shift of all norms of its group), `dL/dm` at m = 1 is
    `sum gamma dL/dgamma + beta dL/dbeta`: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR
    2019, eq. 8, with gates behind batch norm. Its square is averaged over the batches; `ranked_by` divides it by what
    one channel of the group costs. Eq. 3 considers only the layers next to a channel; this considers their effect on
    the loss, where a narrow stem starves all layers behind it. `step`, whose statistics are frozen, computes the
    gradients. `batches` yields (number of the batch, (images, labels)); `seed` and that number determine the dropout.
    With several ranks, each passes its own batches.
    """
    from gcp.backend.engine import mx
    from gcp.train.distributed import device, process_group

    net, widths, ctx = step.wide, step.network().widths, device()
    norms = list(dict.fromkeys(n for g in net.groups for n in g.norms))
    at = mx.nd.array(_entries([net.structure.units_of(net.index[n]) for n in norms]), ctx, "int32")

    def joined(arrays: Sequence) -> mx.nd.NDArray:
        return mx.nd.concat(*(a.reshape(-1) for a in arrays), dim=0)

    def columns() -> list:
        """All scales as one vector, all shifts as another, each with their gradients: few operations per batch."""
        params, of = step.block.collect_params(), []
        for gamma, beta in map(net.norm_arrays, norms):
            shift = mx.nd.zeros_like(params[gamma].data()) if beta is None else params[beta].data()
            if beta is None:  # a gate has no shift
                shift.attach_grad()
            of.append((params[gamma].data(), shift))
        return [(joined(arrays), [a.grad for a in arrays]) for arrays in zip(*of)]

    found, zero, total, n_batches = [], mx.nd.zeros(1, ctx), 0.0, 0
    for i, (x, y) in batches:
        step.backward(x, y, i, seed)
        found = found or columns()  # not earlier: the first batch can show that the block has to be rebuilt
        slopes = sum(values * joined(slopes) for values, slopes in found) / len(x)
        total = total + mx.nd.take(mx.nd.concat(slopes, zero, dim=0), at).sum(axis=1) ** 2
        n_batches += 1
    # Summed on the device and read once, because reading waits for the device.
    own = total.asnumpy() if n_batches else np.zeros(len(at))
    n_batches, *totals = process_group().all_reduce_floats(np.append(float(n_batches), own)).tolist()
    ends = np.cumsum([g.size for g in net.groups])
    by_group = zip(widths.items(), np.split(np.array(totals), ends[:-1]))  # idle channels come last
    return {name: total[:n] / max(1, n_batches) for (name, n), total in by_group}


def _entries(units: Sequence[np.ndarray]) -> np.ndarray:
    """The positions of each unit's entries in the joined scales, (units, most entries of a unit).

    `units`: the unit of every entry, an array for each norm. Rows are padded with the length of the joined scales.
    """
    of = np.concatenate(units)
    order = np.argsort(of, kind="stable")
    order = order[of[order] >= 0]
    counts = np.bincount(of[order])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.full((len(counts), counts.max()), len(of))
    found[of[order], rank] = order
    return found


def scoring_batches(n_images: int) -> int:
    """The number of batches for `taylor_scores`: a tenth of the images, but at least 20 batches, or all there are."""
    n_all = -(-n_images // SCORING_BATCH)
    return min(n_all, max(20, n_all // 10))


# ---- the registry --------------------------------------------------------------------------------------------------


@CRITERIA.register("l1")
def l1(problem: Problem) -> Scores:
    """The L1 norm of the filter that produces a channel, summed over all producers (Li et al., ICLR 2017)."""
    net = problem.net
    return net.by_unit({layer: np.linalg.norm(w, 1, axis=1) for layer, w in filters(net)})


@CRITERIA.register("l2")
def l2(problem: Problem) -> Scores:
    """The L2 norm of the filter that produces a channel, summed over all producers (Li et al., ICLR 2017)."""
    return problem.net.by_unit({layer: np.sqrt(of) for layer, of in _squares(problem.net).items()})


@CRITERIA.register("lamp")
def lamp(problem: Problem) -> Scores:
    """The squared norm of a filter divided by the sum of those in its group that are not smaller.

    Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021, eq. 3, for channels instead of
    single weights: the largest of every group scores 1, so that no group is emptied.
    """
    scores = {}
    for name, square in problem.net.by_unit(_squares(problem.net)).items():
        order = np.argsort(square, kind="stable")
        not_smaller = np.cumsum(square[order][::-1])[::-1]
        scores[name] = np.empty_like(square)
        scores[name][order] = square[order] / np.where(not_smaller > 0, not_smaller, 1.0)
    return scores


def _squares(net: Network) -> Dict[str, np.ndarray]:
    """The squared norms of each layer's filters."""
    return {layer: np.square(w, dtype=np.float64).sum(1) for layer, w in filters(net)}


@CRITERIA.register("fpgm")
def fpgm(problem: Problem) -> Scores:
    """The sum of the distances from a filter to the other filters of its layer, over all producers.

    He et al., "Filter pruning via geometric median", CVPR 2019, eq. 5: a filter near the geometric median of its layer
    can be replaced by the others.
    """
    return problem.net.by_unit({layer: _distances(w.astype(np.float64)) for layer, w in filters(problem.net)})


def _distances(rows: np.ndarray) -> np.ndarray:
    """For each row, the sum of its distances to all rows, by a matrix product: far faster than pair by pair."""
    squares = np.square(rows).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)).sum(1)


def _scales(net: Network) -> Scores:
    """The absolute scale of each unit, summed over all norms that scale it.

    UserError: a group has no batch norm with trained scales.
    """
    net = fold_gates(net)
    total, found = np.zeros(len(net.structure.group_of) + 1), np.zeros(len(net.structure.group_of) + 1, bool)
    for call in net.structure.calls.values():
        scale = net.nodes[call.node.inputs[1][0]] if call.operator.is_norm else None
        if scale is not None and call.outs[0] is not None and scale.attrs.get(FROZEN) != "0.0":
            np.add.at(total, call.outs[0].labels, np.abs(net.arrays[scale.name]).astype(np.float64))
            found[call.outs[0].labels] = True
    for g in net.groups:
        if not found[g.start : g.start + g.size].all():
            wrong = f"the channels of '{g.name}' have no batch norm with trained scales"
            raise UserError(f"criterion bn_scale: {wrong}; choose another criterion, such as l1", "criterion.network")
    return {g.name: total[g.start : g.start + g.size] for g in net.groups}


@CRITERIA.register("bn_scale", check=_scales)
def bn_scale(problem: Problem) -> Scores:
    """The absolute batch-norm scale of a channel, summed over all norms that scale it (Liu et al., ICCV 2017)."""
    return _scales(problem.net)


@CRITERIA.register("random")
def at_random(problem: Problem) -> Scores:
    """A random rank for every channel, drawn from the seed: as a fraction, so that wide groups do not rank higher."""
    rng = np.random.default_rng(problem.seed)
    return {g.name: (rng.permutation(g.size) + 0.5) / g.size for g in problem.net.groups}


@CRITERIA.register("paper")
def paper(problem: Problem) -> Scores:
    """Eq. 3: see `paper_scores`."""
    return paper_scores(problem.net)


@CRITERIA.register("relative", per_cost=True)
def relative(problem: Problem) -> Scores:
    """The share of its readers' output variance that a channel carries: see `relative_scores`."""
    return relative_scores(problem.net)


@CRITERIA.register("taylor", per_cost=True, n_images=lambda n_train: scoring_batches(n_train) * SCORING_BATCH)
def taylor(problem: Problem) -> Scores:
    """The squared first-order change of the loss, over training images: see `taylor_scores`."""
    return _slopes(problem, SCORING_BATCH, scoring_batches(len(problem.data.train)))


@CRITERIA.register("group_fisher", per_cost=True, n_images=lambda n_train: min(n_train, FISHER_IMAGES))
def group_fisher(problem: Problem) -> Scores:
    """The squared gradient of one image's loss with respect to a gate on the channel, averaged over images.

    The gate acts on all norms of the channel. Liu et al., "Group Fisher Pruning for Practical Network Compression",
    ICML 2021, eqs. 3 and 5: `taylor_scores` with batches of one image. There, channels are removed one at a time during
    training; here they are scored once.
    """
    return _slopes(problem, 1, images_to_score("group_fisher", len(problem.data.train)))


def _slopes(problem: Problem, batch: int, n_batches: int) -> Scores:
    from gcp.train.distributed import process_group
    from gcp.train.loop import Batches
    from gcp.train.steps import scoring_step

    rank, n = process_group().part  # batch k belongs to rank k mod n
    seed = Stream.SCORING.seed(problem.seed, problem.iteration)
    own = zip(range(rank, n_batches, n), Batches(problem.data.train, n * batch, seed).since(0))
    return taylor_scores(problem.step or scoring_step(problem.net, problem.task), own, seed)


def images_to_score(criterion: str, n_train: int) -> int:
    """The number of training images that a criterion uses, given `n_train` of them."""
    return getattr(CRITERIA[criterion], "n_images", lambda n_train: 0)(n_train)
