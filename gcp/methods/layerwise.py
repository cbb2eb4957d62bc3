"""Layer-by-layer pruning: channels chosen by what the next layers would lose, weights refitted by least squares.

This is what ThiNet and CP share (Luo et al., ICCV 2017; He, Zhang & Sun, ICCV 2017), going from the image to the
output. For the layers that read a group, the Gram matrix of the channels' contributions to sampled outputs determines
how much any set of channels is worth, in channels^2 numbers however many samples there are.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any, Callable, Dict, List, Literal, NamedTuple, Tuple

import numpy as np
from pydantic import Field
from scipy import sparse

from gcp.cost.base import Budget
from gcp.cost.measured import fit_to_measured_budget
from gcp.errors import UserError
from gcp.graph.channels import Group
from gcp.graph.network import Keep, Network, Widths
from gcp.graph.surgery import shrink
from gcp.methods.base import MethodOptions, Outcome, Problem, Run, whole_batches, with_new_statistics
from gcp.methods.uniform import uniform_widths
from gcp.seeds import Stream


class Contributions(NamedTuple):
    """What the channels of a group contribute to the outputs of its readers, over all samples and readers.

    Each reader's outputs are scaled to variance 1. `gram[i, j]`: the product of the contributions of channels i and j.
    `wanted[i]`: the product of channel i's contribution and the reader's outputs in the whole network. `norms[i]`: the
    norm of the weights that read channel i.
    """

    gram: np.ndarray
    wanted: np.ndarray
    norms: np.ndarray


BLOCK = 256  # rows of a matrix of products computed at a time
LEAST_SCALE = 1e-3  # smallest scale at which an output makes up for a shortcut, relative to the largest

Choice = Callable[[Contributions, int], np.ndarray]  # (contributions, number of channels) -> indices to keep


class LayerwiseOptions(MethodOptions):
    """Which channels may be removed, and what they are judged by."""

    where: Literal["inside", "all"] = Field(
        "inside",
        description="inside: only channels that a single layer produces, those inside residual blocks, as published; "
        "all: also channels tied by additions, judged by what all their readers lose",
    )
    n_images_seen: int = Field(512, ge=1, le=10**6, description="training images used for each layer, in whole batches")

    def check(self, net: Network, budget: Budget) -> None:
        """See `MethodOptions`; also raises UserError if the groups that may be cut are not enough for the target."""
        super().check(net, budget)
        sizes = prunable_sizes(net, self.where)
        lowest = _of_part(budget, net.widths).lowest(sizes) if sizes else 1.0
        if lowest > budget.target:
            inside = self.where == "inside"
            what = "channels inside residual blocks" if inside else "channels that can be fitted by least squares"
            fix = f"give a target of at least {np.ceil(1e4 * lowest) / 1e4:.4f}{', or set `where` to all' * inside}"
            raise UserError(
                f"prune.target: {budget.target:g} cannot be reached by removing {what} alone; {fix}", "budget.target"
            )

    def corrects_shortcuts(self) -> bool:
        """Whether the last layer of a residual branch makes up for what its shortcut has lost."""
        return False

    def n_images(self, n_train: int, batch: int, n_renewed: int = 0) -> int:
        """Images used for the layers, the same for all of them, and those used after the cut."""
        return whole_batches(self.n_images_seen, n_train, batch) + n_renewed


def prune_layerwise(problem: Problem, options: LayerwiseOptions, choose: Choice, run: Run) -> Outcome:
    """Cut every group that may be cut to the same fraction, choosing channels by `choose`, and refit its readers."""
    return at_uniform_widths(problem, options, lambda widths: reconstructed(problem, widths, options, choose), run)


def at_uniform_widths(
    problem: Problem, options: LayerwiseOptions, pruned: Callable[[Widths], Network], run: Run
) -> Outcome:
    """The result of `pruned(widths)` with the same fraction of every group that may be cut, within the budget."""
    budget = problem.budget
    sizes = prunable_sizes(problem.net, options.where)
    part = _of_part(budget, problem.net.widths)

    made: Dict[Tuple[int, ...], Network] = {}

    def small(aim: float) -> Network:
        widths = uniform_widths(sizes, replace(part, target=aim / budget.original))
        key = tuple(widths.values())
        if key not in made:  # neighbouring aims can give the same widths, and pruning takes data passes
            made[key] = pruned(widths)
        return made[key]

    net, timings = fit_to_measured_budget(budget, budget.target * budget.original, small)
    if timings:
        run.log("timed", timings=timings)
    net, n_statistics = with_new_statistics(problem, net)
    n = whole_batches(options.n_images_seen, len(problem.data.train), problem.batch)
    images = {"selection": n, "statistics": n_statistics}
    return Outcome(net, {purpose: n for purpose, n in images.items() if n})


def prunable_sizes(net: Network, where: str) -> Widths:
    """The sizes of the groups that can be cut by their contributions to their readers' outputs.

    Groups without readers, or with one that cannot be fitted, are left out, and so are groups with several producers
    unless `where` is "all".
    """
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
    """The budget as a function of the widths of some groups, where the others keep all their channels."""
    return replace(budget, cost=lambda some: budget.cost({**widths, **some}))


def reconstructed(problem: Problem, widths: Widths, options: LayerwiseOptions, choose: Choice) -> Network:
    """The network with some groups cut to these widths, one after another from the image to the output.

    The contributions of a group's channels are those in the network pruned so far; the outputs to which its readers are
    fitted are those in the whole network.
    """
    from gcp.train.loop import Batches

    n = whole_batches(options.n_images_seen, len(problem.data.train), problem.batch) // problem.batch
    batches = Batches(problem.data.train, problem.batch, Stream.RECONSTRUCTION.seed(problem.seed, problem.iteration))
    look = Look([x for x, _ in islice(batches.since(0), n)], batches.seed, options.corrects_shortcuts())
    net, keep = problem.net, {g.name: np.arange(g.size) for g in problem.net.groups}
    for name, width in widths.items():
        if width < len(keep[name]):
            seen = looked_at(problem.net, net, keep, name, look)
            net, chosen = cut_group(problem, net, seen, width, choose)
            keep = {**keep, name: keep[name][chosen]}
    return net


class Look(NamedTuple):
    """Batches of images, the seed for sampled positions, and whether residual branches make up for their shortcuts."""

    images: List[Any]
    seed: int
    corrects_shortcuts: bool = False


class Seen(NamedTuple):
    """What was observed of a group: per reader, the layer, its sums, and its outputs' weights (see `Shortcut`)."""

    group: Group
    layers: List[Any]
    sums: List[Any]
    scales: List[np.ndarray]


def readers_of(whole: Network, net: Network, keep: Keep, name: str, seed: int) -> Seen:
    """The readers of a group of the pruned network, before any data is seen."""
    from gcp.train.reconstruct import Layer, Sums, kept_outputs

    group = next(g for g in net.groups if g.name == name)
    calls = [whole.structure.calls[whole.index[reader]] for reader in group.consumers]
    layers = [
        Layer(net, net.index[reader], kept_outputs(whole, call, keep), seed)
        for reader, call in zip(group.consumers, calls)
    ]
    return Seen(group, layers, [Sums(layer, net) for layer in layers], [np.ones(len(layer.kept)) for layer in layers])


def looked_at(whole: Network, net: Network, keep: Keep, name: str, look: Look) -> Seen:
    """Pass over the data: what the readers of a group of the pruned network receive, and what they should output.

    Where a residual branch makes up for its shortcut, its last layer should output what the sum lacks (He et al.,
    section 3.3): its output in the whole network, plus what the shortcut adds there and no longer adds in the pruned
    network.
    """
    from gcp.train.reconstruct import shortcut_of, tensors_of

    seen = readers_of(whole, net, keep, name, look.seed)
    _, layers, sums, scales = seen
    read = [net.structure.calls[layer.i].node.inputs[0] for layer in layers]
    said = [(whole.index[layer.name], 0) for layer in layers]
    after: Dict[int, int] = {}  # number of a reader -> position of its shortcut among the tensors
    for k, layer in enumerate(layers if look.corrects_shortcuts else []):
        before, now = shortcut_of(whole, layer.name), shortcut_of(net, layer.name)
        if before is not None and now is not None:
            after[k], scales[k] = len(read), before.scale[layer.kept]
            read.append(now.tensor)
            said.append(before.tensor)
    inputs, outputs = tensors_of(net, read), tensors_of(whole, said)
    for number, x in enumerate(look.images):
        xs, ys = inputs(x), outputs(x)
        for k, (layer, total) in enumerate(zip(layers, sums)):
            y = layer.sampled(ys[k][:, layer.kept], number)
            if k in after:
                lacking = layer.sampled(ys[after[k]][:, layer.kept] - xs[after[k]], number)
                # An output that hardly reaches the sum cannot make up for anything.
                reaches = np.abs(scales[k]) > LEAST_SCALE * np.abs(scales[k]).max()
                y = y + np.divide(lacking, scales[k], out=np.zeros_like(lacking), where=reaches)
            total.add(layer.read(xs[k], number), y)
    return seen


def cut_group(problem: Problem, net: Network, seen: Seen, width: int, choose: Choice) -> Tuple[Network, np.ndarray]:
    """The network with one group cut to `width` and its readers refitted, and the indices of the channels kept."""
    group = seen.group
    units = [net.structure.calls[layer.i].read - group.start for layer in seen.layers]
    found = [_contributions(*each, group.size) for each in zip(seen.sums, units, seen.scales)]
    chosen = np.sort(choose(_joined(found), width))
    keep = {g.name: chosen if g.name == group.name else np.arange(g.size) for g in net.groups}
    small = shrink(net, keep, problem.moved)
    arrays: Dict[str, np.ndarray] = {}
    for layer, total, unit in zip(seen.layers, seen.sums, units):
        stays = (np.isin(unit, chosen) | _others(unit, group.size)).reshape(len(total.before), -1)
        # Conv groups are removed whole, or each loses the same inputs x taps.
        groups = stays.any(axis=1)
        rows = np.flatnonzero(np.repeat(stays[groups][0], total.before.shape[1] // stays.shape[1]))
        arrays.update(layer.fitted(problem.net, small, *total.solved(rows), groups))
    return small.with_arrays(arrays), chosen


def _others(units: np.ndarray, size: int) -> np.ndarray:
    """Which units do not belong to the group, whose own units are numbered from 0."""
    return (units < 0) | (units >= size)


def _contributions(sums: Any, units: np.ndarray, scale: np.ndarray, size: int) -> Contributions:
    """What the units of a group contribute to one reader, relative to the variance of its wanted outputs.

    `scale`: the weight of each output of the reader.
    """
    xx, xr, _, _ = sums.moments()
    groups, n_rows, _ = sums.before.shape
    gram, wanted, norms, said = np.zeros((size, size)), np.zeros(size), np.zeros(size), 1e-30
    for k, weight in enumerate(scale.reshape(groups, -1)):
        of, before = units.reshape(groups, -1)[k], sums.before[k]
        ours = np.flatnonzero(~_others(of, size))
        product = _said_together(xx[k], before * weight, n_rows // len(of))
        said += float(product.sum())
        # The wanted outputs are the contributions of all inputs plus the residual.
        residual, squares = (np.einsum("io,io,o->i", rows, before, np.square(weight)) for rows in (xr[k], before))
        of_inputs = product.sum(1) + residual.reshape(len(of), -1).sum(1)
        wanted += np.bincount(of[ours], of_inputs[ours], size)
        norms += np.bincount(of[ours], squares.reshape(len(of), -1).sum(1)[ours], size)
        if len(np.unique(of[ours])) == len(ours):  # one input each, as nearly everywhere: a tenth of the time of sums
            gram[np.ix_(of[ours], of[ours])] += product[np.ix_(ours, ours)]
        else:
            summed = sparse.csr_matrix((np.ones(len(ours)), (of[ours], ours)), (size, len(of)))  # from inputs to units
            gram += summed @ (summed @ product).T
    # The variance of the wanted outputs is not known; that of the actual outputs (`said`) is, and is nearly the same.
    return Contributions(gram / said, wanted / said, np.sqrt(norms))


def _said_together(xx: np.ndarray, weights: np.ndarray, taps: int) -> np.ndarray:
    """The products of the contributions of all pairs of inputs, each of which takes `taps` rows; (inputs, inputs).

    `xx`: the products of the values that are read. The result sums `xx` times the products of the weights over taps.
    Both are symmetric, so only half of it is computed, in blocks of rows: the full matrix of products, `taps` squared
    times as large, is never held in memory.
    """
    n = len(xx) // taps
    found, step = np.empty((n, n)), max(1, BLOCK // taps)
    for at in range(0, n, step):
        rows, rest = slice(at * taps, (at + step) * taps), slice(at * taps, None)
        block = weights[rows] @ weights[rest].T
        block *= xx[rows, rest]
        found[at : at + step, at:] = block.reshape(-1, taps, n - at, taps).sum((1, 3))
        found[at + step :, at : at + step] = found[at : at + step, at + step :].T
    return found


def _joined(found: List[Contributions]) -> Contributions:
    """The contributions to several readers, added up, since each reader loses its own."""
    norms = np.sqrt(sum(np.square(each.norms) for each in found))
    return Contributions(sum(each.gram for each in found), sum(each.wanted for each in found), norms)
