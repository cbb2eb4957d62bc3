"""Layer by layer from the image to the output: channels by what the next layers would lose, weights by least squares.

What ThiNet and CP share (Luo et al., ICCV 2017; He, Zhang & Sun, ICCV 2017). Of the layers that read a group, the
Gram matrix of the channels' contributions to sampled outputs says how much any set of channels is worth: channels^2
numbers, whatever the number of samples.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any, Callable, Dict, List, Literal, NamedTuple, Tuple

import numpy as np
from pydantic import Field

from gcp.cost.base import Budget, fit_to_measured_budget
from gcp.errors import UserError
from gcp.graph.network import Keep, Network, Widths
from gcp.graph.surgery import shrink
from gcp.methods.base import MethodOptions, Outcome, Problem, Run, whole_batches, with_new_statistics
from gcp.methods.uniform import uniform_widths
from gcp.seeds import Stream


class Contributions(NamedTuple):
    """What channels of a group say to its readers, over samples and readers, each reader's outputs at variance 1.

    `gram[i, j]`: the product of the contributions of channels i and j. `wanted[i]`: that of channel i and what the
    reader says in the whole network. `norms[i]`: the norm of the weights that read channel i.
    """

    gram: np.ndarray
    wanted: np.ndarray
    norms: np.ndarray


Choice = Callable[[Contributions, int], np.ndarray]  # so many channels -> which ones stay, sorted


class LayerwiseOptions(MethodOptions):
    """Which channels may go, and what they are judged by."""

    where: Literal["inside", "all"] = Field(
        "inside",
        description="inside: only channels that one layer makes, as published: those inside residual blocks; all: also "
        "those that additions tie, by what all their readers lose",
    )
    n_images_seen: int = Field(
        512, ge=1, le=10**6, description="training images that each layer is looked at with, in whole batches"
    )

    def check(self, net: Network, budget: Budget) -> None:
        """See `MethodOptions`: the groups that may be cut have to suffice."""
        super().check(net, budget)
        sizes = prunable_sizes(net, self.where)
        lowest = _of_part(budget, net.widths).lowest(sizes) if sizes else 1.0
        if lowest > budget.target:
            inside = self.where == "inside"
            what = "channels inside residual blocks" if inside else "channels that can be fitted by least squares"
            fix = f"give a target of at least {np.ceil(1e4 * lowest) / 1e4:.4f}{', or set `where` to all' * inside}"
            raise UserError(
                f"prune.target: {budget.target:g} cannot be reached by {what} alone; {fix}", "budget.target"
            )

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """What the layers are looked at with, the same images for all, and what is renewed."""
        return whole_batches(self.n_images_seen, n_train, batch) + n_renewed


def prune_layerwise(problem: Problem, options: LayerwiseOptions, choose: Choice, run: Run) -> Outcome:
    """The same fraction of every group that may be cut, its channels by `choose`, its readers by least squares."""
    return at_uniform_widths(problem, options, lambda widths: reconstructed(problem, widths, options, choose), run)


def at_uniform_widths(
    problem: Problem, options: LayerwiseOptions, pruned: Callable[[Widths], Network], run: Run
) -> Outcome:
    """`pruned(widths)`, with the same fraction of every group that may be cut, within the budget."""
    budget = problem.budget
    sizes = prunable_sizes(problem.net, options.where)
    part = _of_part(budget, problem.net.widths)

    def small(aim: float) -> Network:
        return pruned(uniform_widths(sizes, replace(part, target=aim / budget.original)))

    net, timings = fit_to_measured_budget(budget, budget.target * budget.original, small)
    if timings:
        run.log("timed", timings=timings)
    net, n_statistics = with_new_statistics(problem, net)
    n = whole_batches(options.n_images_seen, len(problem.data.train), problem.batch)
    images = {"selection": n, "statistics": n_statistics}
    return Outcome(net, {purpose: n for purpose, n in images.items() if n})


def prunable_sizes(net: Network, where: str) -> Widths:
    """The groups that can be cut by what their readers say, and their sizes."""
    from gcp.train.reconstruct import can_be_fitted

    calls = net.structure.calls
    return {
        g.name: g.size
        for g in net.groups
        if (where == "all" or len(g.producers) == 1)
        and g.consumers
        and all(can_be_fitted(net, calls[net.index[layer]]) for layer in g.consumers)
    }


def _of_part(budget: Budget, widths: Widths) -> Budget:
    """The budget as a function of some groups' widths; the others stay whole."""
    return replace(budget, cost=lambda some: budget.cost({**widths, **some}))


def reconstructed(problem: Problem, widths: Widths, options: LayerwiseOptions, choose: Choice) -> Network:
    """The network at these widths of some of its groups: one group after the other, from the image to the output.

    What a group's channels say is looked at in the network that was pruned so far; what its readers should say is what
    they say in the whole network.
    """
    from gcp.train.loop import Batches

    n = whole_batches(options.n_images_seen, len(problem.data.train), problem.batch) // problem.batch
    batches = Batches(problem.data.train, problem.batch, Stream.RECONSTRUCTION.seed(problem.seed, problem.iteration))
    images = [x for x, _ in islice(batches.since(0), n)]
    net, keep = problem.net, {g.name: np.arange(g.size) for g in problem.net.groups}
    for name, width in widths.items():
        if width < len(keep[name]):
            net, keep = _cut_group(problem, net, keep, name, width, choose, images, batches.seed)
    return net


def _cut_group(
    problem: Problem, net: Network, keep: Keep, name: str, width: int, choose: Choice, images: List[Any], seed: int
) -> Tuple[Network, Keep]:
    """The network with one group at a smaller width, and its readers' weights fitted to the channels that are left."""
    from gcp.train.reconstruct import Layer, Sums, kept_outputs, tensors_of

    whole, group = problem.net, next(g for g in net.groups if g.name == name)
    whole_calls, calls = whole.structure.calls, net.structure.calls
    kept = {reader: kept_outputs(whole, whole_calls[whole.index[reader]], keep) for reader in group.consumers}
    layers = [Layer(net, net.index[reader], outputs, seed) for reader, outputs in kept.items()]
    sums = [Sums(layer, net) for layer in layers]
    inputs = tensors_of(net, [calls[layer.i].node.inputs[0] for layer in layers])
    outputs = tensors_of(whole, [(whole.index[layer.name], 0) for layer in layers])
    for number, x in enumerate(images):
        for layer, total, read, said in zip(layers, sums, inputs(x), outputs(x)):
            total.add(layer.read(read, number), layer.sampled(said[:, layer.kept], number))
    units = {layer.name: calls[layer.i].read - group.start for layer in layers}
    contributions = _joined(
        [_contributions(total, units[layer.name], group.size) for layer, total in zip(layers, sums)]
    )
    chosen = np.sort(choose(contributions, width))
    small = shrink(net, {g.name: chosen if g.name == name else np.arange(g.size) for g in net.groups}, problem.moved)
    arrays: Dict[str, np.ndarray] = {}
    for layer, total in zip(layers, sums):
        rows = _rows(
            units[layer.name], total.before.shape, lambda unit: np.isin(unit, chosen) | _others(unit, group.size)
        )
        arrays.update(layer.fitted(whole, small, *total.solved(rows)))
    return small.with_arrays(arrays), {**keep, name: keep[name][chosen]}


def _others(units: np.ndarray, size: int) -> np.ndarray:
    """Which are not of the group whose units are numbered from 0."""
    return (units < 0) | (units >= size)


def _rows(units: np.ndarray, shape: Tuple[int, int, int], which: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Of the first conv group's inputs x taps, those whose unit is among `which`; other conv groups have the same."""
    groups, rows, _ = shape
    of_group = units.reshape(groups, -1)[0]
    return np.flatnonzero(which(np.repeat(of_group, rows // len(of_group))))


def _contributions(sums, units: np.ndarray, size: int) -> Contributions:
    """What the units of a group say to one reader, over the variance of what it should say."""
    xx, xr, _, _ = sums.moments()
    before = sums.before
    groups, n_rows, _ = before.shape
    gram, wanted, norms = np.zeros((size, size)), np.zeros(size), np.zeros(size)
    for k in range(groups):
        of = units.reshape(groups, -1)[k]
        unit = np.repeat(of, n_rows // len(of))
        rows = np.flatnonzero(~_others(unit, size))
        rows = rows[np.argsort(unit[rows], kind="stable")]
        names, starts = np.unique(unit[rows], return_index=True)
        w, product = before[k][rows], xx[k][np.ix_(rows, rows)] * (before[k][rows] @ before[k][rows].T)
        gram[np.ix_(names, names)] += np.add.reduceat(np.add.reduceat(product, starts, axis=0), starts, axis=1)
        should = xr[k] + xx[k] @ before[k]  # what is read, times what should be said
        wanted[names] += np.add.reduceat((should[rows] * w).sum(1), starts)
        norms[names] += np.add.reduceat(np.square(w).sum(1), starts)
    # The variance of what should be said is not known, that of what is said is: nearly the same.
    said = max(sum(float((xx[k] * (before[k] @ before[k].T)).sum()) for k in range(groups)), 1e-30)
    return Contributions(gram / said, wanted / said, np.sqrt(norms))


def _joined(found: List[Contributions]) -> Contributions:
    """Of several readers: each loses its own."""
    norms = np.sqrt(sum(np.square(each.norms) for each in found))
    return Contributions(sum(each.gram for each in found), sum(each.wanted for each in found), norms)
