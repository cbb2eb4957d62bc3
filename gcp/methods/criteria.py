"""What a channel is worth: one score per channel of every group, from the weights alone or from the loss."""

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

Scores = Dict[str, np.ndarray]  # per group, one number per channel; the lowest go first
# A criterion is registered as a function Problem -> Scores. With `per_cost=True` its scores are parts of something that
# a cost is to be weighed against; `n_images(training images)` says how many it looks at; `check(net)` is a UserError
# where it cannot rank a network's channels.
CRITERIA: Registry[Callable[[Problem], Scores]] = Registry("criterion")

# Squared slopes are averaged over batches: of the same images, many small batches tell more than a few large ones.
SCORING_BATCH = 16
FISHER_IMAGES = 1024  # that `group_fisher` looks at, one by one


def check_criterion(criterion: str, net: Network) -> None:
    """UserError: the criterion cannot rank the channels of this network."""
    getattr(CRITERIA[criterion], "check", lambda net: None)(net)


def ranked_by(criterion: str, problem: Problem, per_cost: Optional[bool] = None) -> Scores:
    """The scores that channels of all groups are ranked by, per unit of cost where the criterion is of that kind.

    `per_cost` says it for the criterion.
    """
    scores = CRITERIA[criterion](problem)
    if not (getattr(CRITERIA[criterion], "per_cost", False) if per_cost is None else per_cost):
        return scores
    per_channel = problem.budget.price.marginal(problem.net.widths)
    return {name: of / per_channel[name] for name, of in scores.items()}


# ---- importance ---------------------------------------------------------------------------------------------------


def unit_variances(net: Network) -> Dict[str, np.ndarray]:
    """Sum of the squared scales of each unit of every group, float64."""
    scales = {n: np.square(net.arrays[net.norm_arrays(n)[0]], dtype=np.float64) for g in net.groups for n in g.norms}
    return net.by_unit(scales)


def absolute_penalty(net: Network, lam: float, lr: float, n_steps: int) -> float:
    """The lambda of eq. 6 for a relative one, so that one value of `prune.gcp.lam` means the same on every network.

    At `lam` = 1 a channel of mean scale and mean cost, with no gradient to hold it, just reaches zero in `n_steps`.
    """
    scales = np.concatenate([np.sqrt(v) for v in unit_variances(net).values()])
    return lam * float(scales.mean()) / (lr * n_steps)


def paper_scores(net: Network) -> Dict[str, np.ndarray]:
    """Eq. 3: `gamma_j^2 * ||W[:, j]||_F^2` per unit of each group.

    A tied group's producers are summed, and so are its readers; the score is the product of the two sums. Depthwise
    kernels scale a channel but do not spread it, so only convs and dense layers count as readers.
    """
    streams, arrays = net.streams, net.arrays
    made, bare, read = np.zeros(streams.n), np.zeros(streams.n), np.zeros(streams.n)
    for i, of in streams.sources.items():
        if is_scale(net, i):
            np.add.at(made, of, np.square(arrays[net.norm_arrays(net.nodes[i].name)[0]], dtype=np.float64).reshape(-1))
        elif is_depthwise(net, i):  # without a norm: what arrives, times the kernel
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
    """Variance that the readers lose with a channel, as a share of what they would have left.

    For output k of a reader, channel j carries `v_j ||W[k,j]||^2 / sum_i v_i ||W[k,i]||^2` of its variance, with `v`
    the summed squared scales that arrive there. Shares are averaged over k and summed over the readers; unlike eq.
    3's product of sums they grow with the number of readers only as the cost of a tied group does. A share is
    then taken of what remains once the group's lower channels are gone (so the last channel of a group counts for
    all of it: ranking by plain shares, which sum to 1 in every layer, emptied whole layers at once).
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
    """What the loss would change without a channel, to first order and squared.

    With a factor m on a channel (on scale and shift of all norms of its group), `dL/dm` at m = 1 is
    `sum gamma dL/dgamma + beta dL/dbeta`: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR
    2019, eq. 8, with gates behind batch norm. Its square is averaged over the batches and divided by what one channel
    of the group costs. Eq. 3 sees the layers next to a channel; this sees what the loss makes of them: a narrow stem
    starves all that follows. `step`, whose statistics are frozen, gives the slopes; `batches` are (number of the batch,
    (images, labels)), and dropout follows from `seed` and that number. Several ranks each bring batches of their own.
    """
    from gcp.backend.engine import mx
    from gcp.train.distributed import device, process_group

    net, widths, ctx = step.wide, step.network().widths, device()
    norms = list(dict.fromkeys(n for g in net.groups for n in g.norms))
    at = mx.nd.array(_entries([net.structure.units_of(net.index[n]) for n in norms]), ctx, "int32")

    def joined(arrays: Sequence) -> mx.nd.NDArray:
        return mx.nd.concat(*(a.reshape(-1) for a in arrays), dim=0)

    def columns() -> list:
        """All scales as one vector, all shifts as another, each with their slopes: few operations a batch."""
        params, of = step.block.collect_params(), []
        for gamma, beta in map(net.norm_arrays, norms):
            shift = mx.nd.zeros_like(params[gamma].data()) if beta is None else params[beta].data()
            if beta is None:  # a gate
                shift.attach_grad()
            of.append((params[gamma].data(), shift))
        return [(joined(arrays), [a.grad for a in arrays]) for arrays in zip(*of)]

    found, zero, total, n_batches = [], mx.nd.zeros(1, ctx), 0.0, 0
    for i, (x, y) in batches:
        step.backward(x, y, i, seed)
        found = found or columns()  # not before: the first batch can show that the block has to be built anew
        slopes = sum(values * joined(slopes) for values, slopes in found) / len(x)
        total = total + mx.nd.take(mx.nd.concat(slopes, zero, dim=0), at).sum(axis=1) ** 2
        n_batches += 1
    # Summed where they are and read once: reading waits for the device.
    own = total.asnumpy() if n_batches else np.zeros(len(at))
    n_batches, *totals = process_group().all_reduce_floats(np.append(float(n_batches), own)).tolist()
    ends = np.cumsum([g.size for g in net.groups])
    by_group = zip(widths.items(), np.split(np.array(totals), ends[:-1]))  # idle channels come last
    return {name: total[:n] / max(1, n_batches) for (name, n), total in by_group}


def _entries(units: Sequence[np.ndarray]) -> np.ndarray:
    """Per unit, where its entries are in the joined scales, whose units these are; the rest of a row is the length."""
    of = np.concatenate(units)
    order = np.argsort(of, kind="stable")
    order = order[of[order] >= 0]
    counts = np.bincount(of[order])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.full((len(counts), counts.max()), len(of))
    found[of[order], rank] = order
    return found


def scoring_batches(n_images: int) -> int:
    """How many batches `taylor_scores` looks at: a tenth of the images, 20 batches at least, or all there are."""
    n_all = -(-n_images // SCORING_BATCH)
    return min(n_all, max(20, n_all // 10))


# ---- the registry --------------------------------------------------------------------------------------------------


@CRITERIA.register("l1")
def l1(problem: Problem) -> Scores:
    """The L1 norm of the filter that makes a channel, over all producers (Li et al., ICLR 2017)."""
    net = problem.net
    return net.by_unit({layer: np.linalg.norm(w, 1, axis=1) for layer, w in filters(net)})


@CRITERIA.register("l2")
def l2(problem: Problem) -> Scores:
    """The L2 norm of the filter that makes a channel, over all producers (Li et al., ICLR 2017)."""
    return problem.net.by_unit({layer: np.sqrt(of) for layer, of in _squares(problem.net).items()})


@CRITERIA.register("lamp")
def lamp(problem: Problem) -> Scores:
    """The squared norm of a filter over the sum of those in its group that are not smaller.

    Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021, eq. 3, for channels in place of
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
    """Per layer, the squared norms of its filters."""
    return {layer: np.square(w, dtype=np.float64).sum(1) for layer, w in filters(net)}


@CRITERIA.register("fpgm")
def fpgm(problem: Problem) -> Scores:
    """The sum of the distances from a filter to its layer's others, over all producers.

    He et al., "Filter pruning via geometric median", CVPR 2019, eq. 5: a filter near the geometric median of its layer
    says what the others say.
    """
    return problem.net.by_unit({layer: _distances(w.astype(np.float64)) for layer, w in filters(problem.net)})


def _distances(rows: np.ndarray) -> np.ndarray:
    """Per row, the sum of its distances to all rows; by a product of matrices, as pair by pair takes far longer."""
    squares = np.square(rows).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)).sum(1)


def _scales(net: Network) -> Scores:
    """The absolute scale of each unit, over all norms that scale it. UserError: a group has none."""
    net = fold_gates(net)
    total, found = np.zeros(len(net.structure.group_of) + 1), np.zeros(len(net.structure.group_of) + 1, bool)
    for call in net.structure.calls.values():
        scale = net.nodes[call.node.inputs[1][0]] if call.operator.is_norm else None
        if scale is not None and call.outs[0] is not None and scale.attrs.get(FROZEN) != "0.0":
            np.add.at(total, call.outs[0].labels, np.abs(net.arrays[scale.name]).astype(np.float64))
            found[call.outs[0].labels] = True
    for g in net.groups:
        if not found[g.start : g.start + g.size].all():
            wrong = f"the channels of '{g.name}' have no batch norm with scales that are trained"
            raise UserError(f"criterion bn_scale: {wrong}; take another criterion, such as l1", "criterion.network")
    return {g.name: total[g.start : g.start + g.size] for g in net.groups}


@CRITERIA.register("bn_scale", check=_scales)
def bn_scale(problem: Problem) -> Scores:
    """The absolute scale of a channel in batch norm, over all norms that scale it (Liu et al., ICCV 2017)."""
    return _scales(problem.net)


@CRITERIA.register("random")
def at_random(problem: Problem) -> Scores:
    """A random rank for every channel, from the seed."""
    rng = np.random.default_rng(problem.seed)
    return {g.name: rng.permutation(g.size).astype(np.float64) for g in problem.net.groups}


@CRITERIA.register("paper")
def paper(problem: Problem) -> Scores:
    """Eq. 3: see `paper_scores`."""
    return paper_scores(problem.net)


@CRITERIA.register("relative", per_cost=True)
def relative(problem: Problem) -> Scores:
    """The share of what the readers see: see `relative_scores`."""
    return relative_scores(problem.net)


@CRITERIA.register("taylor", per_cost=True, n_images=lambda n_train: scoring_batches(n_train) * SCORING_BATCH)
def taylor(problem: Problem) -> Scores:
    """The squared first-order change of the loss, over training images: see `taylor_scores`."""
    return _slopes(problem, SCORING_BATCH, scoring_batches(len(problem.data.train)))


@CRITERIA.register("group_fisher", per_cost=True, n_images=lambda n_train: min(n_train, FISHER_IMAGES))
def group_fisher(problem: Problem) -> Scores:
    """The mean over images of the squared slope of one image's loss by a gate on the channel, over all its norms.

    Liu et al., "Group Fisher Pruning for Practical Network Compression", ICML 2021, eqs. 3 and 5: `taylor_scores` of
    batches of one image. There channels go one at a time during training; here they are scored once.
    """
    return _slopes(problem, 1, images_to_score("group_fisher", len(problem.data.train)))


def _slopes(problem: Problem, batch: int, n_batches: int) -> Scores:
    from gcp.train.distributed import process_group
    from gcp.train.loop import Batches
    from gcp.train.steps import scoring_step

    rank, n = process_group().part  # batch k is that of rank k mod n
    seed = Stream.SCORING.seed(problem.seed, problem.iteration)
    own = zip(range(rank, n_batches, n), Batches(problem.data.train, n * batch, seed).since(0))
    return taylor_scores(problem.step or scoring_step(problem.net, problem.task), own, seed)


def images_to_score(criterion: str, n_train: int) -> int:
    """Training images that a criterion looks at."""
    return getattr(CRITERIA[criterion], "n_images", lambda n_train: 0)(n_train)
