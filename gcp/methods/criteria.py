"""What a channel is worth: one score per channel of every group, from the weights alone or from the loss."""

from __future__ import annotations

from typing import Callable, Dict, Iterable

import numpy as np

from gcp.cost.base import Cost
from gcp.graph.network import Network, is_depthwise, squared_input_norms
from gcp.methods.base import Problem
from gcp.registry import Registry
from gcp.seeds import Stream

Scores = Dict[str, np.ndarray]  # per group, one number per channel; the lowest go first
CRITERIA: Registry[Callable[[Problem], Scores]] = Registry("criterion")

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


def taylor_scores(step, cost: Cost, batches: Iterable, seed: int = 0) -> Scores:
    """What the loss would change without a channel, to first order and squared, per unit of cost.

    With a factor m on a channel (on scale and shift of all norms of its group), `dL/dm` at m = 1 is
    `sum gamma dL/dgamma + beta dL/dbeta`: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR
    2019, eq. 8, with gates behind batch norm. Its square is averaged over the batches and divided by what one channel
    of the group costs. Eq. 3 sees the layers next to a channel; this sees what the loss makes of them: a narrow stem
    starves all that follows. `step`, whose statistics are frozen, gives the slopes; `batches` are (number of the batch,
    (images, labels)), and dropout follows from `seed` and that number. Several ranks each bring batches of their own.
    """
    from gcp.backend.engine import mx
    from gcp.train.distributed import process_group

    net, params = step.network(), step.block.collect_params()
    arrays = {
        g.name: [params[a].data() for n in g.norms for a in net.norm_arrays(n) if a is not None] for g in net.groups
    }
    sums, n_batches = {g.name: 0.0 for g in net.groups}, 0
    for i, (x, y) in batches:
        step.backward(x, y, i, seed)
        for name, of_group in arrays.items():
            slope = sum((a * a.grad).reshape(-1) for a in of_group) / len(x)
            sums[name] = sums[name] + slope**2
        n_batches += 1
    # Summed where they are and read once: reading waits for the device.
    own = mx.nd.concat(*sums.values(), dim=0).asnumpy() if n_batches else np.zeros(sum(net.widths.values()))
    n_batches, *totals = process_group().all_reduce_floats([n_batches, *own.astype(np.float64)])
    ends, per_channel = np.cumsum([g.size for g in net.groups]), cost.marginal(net.widths)
    by_group = zip(sums, np.split(np.array(totals), ends[:-1]))
    return {name: total / max(1, n_batches) / per_channel[name] for name, total in by_group}


def scoring_batches(n_images: int) -> int:
    """How many batches `taylor_scores` looks at: a tenth of the images, 20 batches at least, or all there are."""
    n_all = -(-n_images // SCORING_BATCH)
    return min(n_all, max(20, n_all // 10))


# ---- the registry --------------------------------------------------------------------------------------------------


@CRITERIA.register("l1")
def l1(problem: Problem) -> Scores:
    """Per channel, the L1 norm of the weights that produce it, over all producers (Li et al. 2017)."""
    net = problem.net
    return {
        g.name: sum(
            np.abs(net.arrays[net.weight(p)].astype(np.float64)).reshape(g.size, -1).sum(1) for p in g.producers
        )
        for g in net.groups
    }


@CRITERIA.register("random")
def at_random(problem: Problem) -> Scores:
    """A random rank for every channel, from the seed."""
    rng = np.random.default_rng(problem.seed)
    return {g.name: rng.permutation(g.size).astype(np.float64) for g in problem.net.groups}


@CRITERIA.register("paper")
def paper(problem: Problem) -> Scores:
    """Eq. 3: see `paper_scores`."""
    return paper_scores(problem.net)


@CRITERIA.register("relative")
def relative(problem: Problem) -> Scores:
    """The share of what the readers see: see `relative_scores`."""
    return relative_scores(problem.net, problem.budget.price)


@CRITERIA.register("taylor", n_images=lambda n_train: scoring_batches(n_train) * SCORING_BATCH)
def taylor(problem: Problem) -> Scores:
    """The squared first-order change of the loss, over training images: see `taylor_scores`."""
    from gcp.train.distributed import process_group
    from gcp.train.loop import Batches
    from gcp.train.steps import scoring_step

    rank, n = process_group().part  # batch k is that of rank k mod n
    train, n_batches = problem.data.train, scoring_batches(len(problem.data.train))
    seed = Stream.SCORING.seed(problem.seed, problem.iteration)
    own = zip(range(rank, n_batches, n), Batches(train, n * SCORING_BATCH, seed).since(0))
    step = problem.step or scoring_step(problem.net, problem.task)
    return taylor_scores(step, problem.budget.price, own, seed)


def images_to_score(criterion: str, n_train: int) -> int:
    """Training images that a criterion looks at."""
    return getattr(CRITERIA[criterion], "n_images", lambda n_train: 0)(n_train)
