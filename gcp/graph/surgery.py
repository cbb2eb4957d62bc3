"""What can be done to a network's channels: silence them, remove them, move factors and constants, resize.

`silence(net, keep)` and `shrink(net, keep)` give the same function of the image; the first keeps all channels in place.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np

from gcp.errors import UserError
from gcp.graph.channels import GATE, Call, is_depthwise, is_gate, is_norm, is_scale, layer_name
from gcp.graph.network import Network, Node, Tensor, frozen, has_weight, residual_norms
from gcp.graph.operators import ZERO, Channels, Gaussian

# ---- rewriting ------------------------------------------------------------------------------------------------------

New = Tuple[Node, Tuple[Tuple[int, ...], ...]]  # a node and the shapes of its outputs


def rewrite(
    net: Network,
    edit: Callable[[int, Node, Callable[[Node, tuple], int]], Optional[int]],
    arrays: Mapping[str, np.ndarray],
) -> Network:
    """The network with its nodes edited in order, and with these arrays; graphs gain or lose nodes only here.

    `edit(i, node, add)` gets each node with its inputs already pointing into the new graph. `add(node, shapes)` appends
    a node and returns its position. `edit` returns the position that takes the place of node i (that of an input to
    bypass the node), or None if node i is left out and nothing reads it.
    """
    nodes: List[Node] = []
    shapes: List[tuple] = []
    moved: Dict[int, int] = {}

    def add(node: Node, shape: tuple) -> int:
        nodes.append(node)
        shapes.append(shape)
        return len(nodes) - 1

    for i, node in enumerate(net.nodes):
        at = edit(i, replace(node, inputs=tuple((moved[j], o) for j, o in node.inputs)), add)
        if at is not None:
            moved[i] = at
    outputs = tuple((moved[i], o) for i, o in net.outputs)
    return replace(net, nodes=tuple(nodes), outputs=outputs, shapes=tuple(shapes), arrays=arrays)


# ---- gates ----------------------------------------------------------------------------------------------------------


def with_gates(net: Network) -> Network:
    """The same function with a gate of ones wherever a channel has no batch norm of its own that can silence it.

    A gate is an array that multiplies channels after a layer, or after the layer's norm, so that it scales the shift
    as well. It gives such groups the scale that GCP regularises; `fold_gates` removes it again.
    """
    arrays, structure = dict(net.arrays), net.structure
    places = structure.missing_gates
    if not places:
        return net

    def edit(i: int, node: Node, add: Callable) -> int:
        at = add(node, net.shapes[i])
        if i not in places:
            return at
        out, name = structure.calls[i].outs[0], net.unused(layer_name(net.nodes[i].name) + "_gate")
        value = out.spread(len(net.shapes[i][0]), np.ones(len(out.labels), np.float32))
        arrays[name] = value
        # MXNet cannot infer this shape from the graph
        gate = add(Node("null", name, {"__shape__": str(value.shape), GATE: "True"}), (value.shape,))
        return add(Node("broadcast_mul", net.unused(name + "_fwd"), {}, ((at, 0), (gate, 0))), net.shapes[i])

    return rewrite(net, edit, arrays)


def fold_gates(net: Network) -> Network:
    """The same function with all gates multiplied into the arrays before them, and removed from the graph."""
    arrays, gone = dict(net.arrays), set()
    for i, node in enumerate(net.nodes):
        if is_gate(net, i):
            (source, _), (gate, _) = node.inputs
            gone |= {i, gate}
            by = arrays.pop(net.nodes[gate].name).reshape(-1)
            for name, spread in _scaled_arrays(net, source):
                arrays[name] = arrays[name] * spread(by)

    def edit(i: int, node: Node, add: Callable) -> Optional[int]:
        if i in gone:
            return node.inputs[0][0] if node.inputs else None
        return add(node, net.shapes[i])

    return rewrite(_without(net, gone), edit, arrays) if gone else net


def _without(net: Network, gone: set) -> Network:
    """The network with gates that no longer read their arrays, so that the arrays can be left out."""
    nodes = tuple(replace(n, inputs=n.inputs[:1]) if i in gone and n.inputs else n for i, n in enumerate(net.nodes))
    return replace(net, nodes=nodes)


def _scaled_arrays(net: Network, i: int) -> List[Tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """The arrays that factors on the outputs of a layer or norm can move into.

    Each with a function that gives the factors as an array that broadcasts with it.
    """
    name, call = net.nodes[i].name, net.structure.calls[i]
    if is_norm(net, i):
        return [(array, np.ravel) for array in net.norm_arrays(name)]
    weight = (net.weight(name), partial(call.operator.by_output, call))
    return [weight] if net.bias(name) is None else [weight, (net.bias(name), np.ravel)]


# ---- silencing and removing -----------------------------------------------------------------------------------------


def silence(net: Network, keep: Mapping[str, Sequence[int]]) -> Network:
    """The network with all dropped channels silenced: the shapes are the same, and dropped channels are constant.

    What scales a dropped channel is set to zero: a channel with a norm of its own then outputs the norm's shift, one
    without a norm its bias, and one that must be zero in a product with another tensor outputs zero. `keep` as in
    `shrink`, which gives the same function with these channels removed.
    """
    structure, arrays = net.structure, {}
    alive = alive_units(net, keep)

    def put(name: str, spread: Callable[[np.ndarray], np.ndarray], units: np.ndarray) -> None:
        dead = (units >= 0) & ~alive[units]
        if dead.any():
            arrays[name] = np.where(spread(dead), np.float32(0), arrays.get(name, net.arrays[name]))

    for i, call in structure.calls.items():
        if call.outs[0] is not None and is_scale(net, i):
            scale = net.norm_arrays(call.node.name)[0]
            spread = partial(call.outs[0].spread, len(call.out_shapes[0])) if is_gate(net, i) else np.ravel
            put(scale, spread, structure.units_of(i))
    for i, units in structure.missing_gates.items():
        arrays_of = _scaled_arrays(net, i)
        for name, spread in arrays_of if structure.demand[i, 0] == ZERO or is_norm(net, i) else arrays_of[:1]:
            put(name, spread, units)
    return net.with_arrays(arrays)


def shrink(net: Network, keep: Mapping[str, Sequence[int]], moved: str = "silenced") -> Network:
    """The network without the dropped channels.

    `keep` maps each group's name to the sorted indices of the units to keep, at least one (else ValueError). A constant
    for each dropped channel moves into the next batch norm's running mean, or the bias of the layer that reads the
    channel (a bias is added where there is neither). With `moved="silenced"` it is the channel's output once silenced,
    so that the result equals `silence(net, keep)` up to rounding, except within a kernel's reach of zero-padded
    borders, where the constant met zeros. With "mean" it is the mean of the channel's output when not silenced,
    computed from its norm's N(shift, scale^2).
    """
    for g in net.groups:
        if len(keep[g.name]) == 0:
            raise ValueError(f"group '{g.name}' would be emptied")
    net = _with_biases(net)
    alive = alive_units(net, keep)
    arrays = _with_constants(net, alive, silence(net, keep).arrays if moved == "silenced" else None)
    return _without_dead(net, alive, arrays)[0]


def cut(net: Network, keep: Mapping[str, Sequence[int]]) -> Tuple[Network, Dict[str, Dict[int, np.ndarray]]]:
    """The network of the kept units alone, as if it had been built without the others: no constants are moved.

    `keep` as in `shrink`. Also returns array name -> {axis: kept indices} for each array that became smaller.
    """
    return _without_dead(net, alive_units(net, keep), dict(net.arrays))


def _without_dead(
    net: Network, alive: np.ndarray, arrays: Dict[str, np.ndarray]
) -> Tuple[Network, Dict[str, Dict[int, np.ndarray]]]:
    """The network of the kept units, made from `arrays`, and the indices that these arrays keep, as in `cut`."""

    def count(labels: np.ndarray) -> int:
        return int(((labels < 0) | alive[labels]).sum())

    small, kept = _recounted(net, count), {}
    for call in net.structure.calls.values():
        for k, axes in call.arrays.items():
            name = net.nodes[call.node.inputs[k][0]].name
            if name not in kept:
                stays = {axis: (labels < 0) | alive[labels] for axis, labels in sorted(axes.items())}
                kept[name] = {axis: np.flatnonzero(of) for axis, of in stays.items() if not of.all()}
                for axis, of in kept[name].items():  # rows first: that leaves less to pick from
                    arrays[name] = np.take(arrays[name], of, axis)
    arrays = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in arrays.items()}
    return replace(small, arrays=arrays), {name: axes for name, axes in kept.items() if axes}


def alive_units(net: Network, keep: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Per unit, whether it is kept, shape (units + 1,): the last value is True, so that -1 (fixed channels) is kept."""
    alive = np.zeros(len(net.structure.group_of) + 1, bool)
    alive[-1] = True
    for g in net.groups:
        alive[g.start + np.asarray(keep[g.name], int)] = True
    return alive


def _recounted(net: Network, count: Callable[[np.ndarray], int]) -> Network:
    """The network with attributes and shapes for `count(labels)` channels wherever it has labels; arrays unchanged."""
    structure, shapes, nodes = net.structure, [list(s) for s in net.shapes], list(net.nodes)

    def resize(j: int, o: int, axis: int, labels: np.ndarray) -> None:
        shapes[j][o] = shapes[j][o][:axis] + (count(labels),) + shapes[j][o][axis + 1 :]

    for i, call in structure.calls.items():
        for o, out in enumerate(call.outs):
            if out is not None:
                resize(i, o, out.axis, out.labels)
        for k, axes in call.arrays.items():
            for axis, labels in axes.items():
                resize(call.node.inputs[k][0], 0, axis, labels)
        changed = call.operator.attributes(call, count) if any(x is not None for x in (*call.ins, *call.outs)) else {}
        if any(call.node.attrs.get(key) != value for key, value in changed.items()):
            nodes[i] = replace(call.node, attrs={**call.node.attrs, **changed})
    for i, node in enumerate(nodes):
        if node.op == "null" and "__shape__" in node.attrs and net.is_array(i):
            nodes[i] = replace(node, attrs={**node.attrs, "__shape__": str(shapes[i][0])})
    return replace(net, nodes=tuple(nodes), shapes=tuple(map(tuple, shapes)))


def _at_widths(net: Network, widths: Mapping[str, int]) -> Network:
    """The network with attributes and shapes for other numbers of units; arrays unchanged."""
    ratio, group_of = np.array([widths[g.name] / g.size for g in net.groups]), net.structure.group_of

    def count(labels: np.ndarray) -> int:
        own = labels[labels >= 0]
        return len(labels) - len(own) + round(float(ratio[group_of[own]].sum())) if len(own) else len(labels)

    return _recounted(net, count)


def resized(net: Network, widths: Mapping[str, int]) -> Network:
    """The same architecture at other widths, smaller or larger, with made-up weights: for costs and for timing.

    `widths`: group name -> number of units, 1 or more, for every group. Weights repeat one block of random numbers at
    the scale of He initialisation, so that a ResNet-101 takes a tenth of a second to make; a network's latency does not
    depend on their values.
    """
    pattern = np.random.default_rng(0).normal(size=4093).astype(np.float32)  # prime, so that rows differ
    other, arrays = _at_widths(net, widths), {}
    for i, call in net.structure.calls.items():
        ones = (1, 4) if is_norm(net, i) else (1,) if is_gate(net, i) else ()  # scale and variance
        for k, (j, _) in enumerate(call.node.inputs):
            if net.is_array(j) and net.nodes[j].name not in arrays:
                shape = other.shapes[j][0]
                if k == call.operator.weight:
                    gain = np.sqrt(2 / np.prod(shape[1:]))
                    value = np.resize(pattern * gain, shape).astype(np.float32)
                else:
                    value = np.full(shape, float(k in ones), np.float32)
                arrays[net.nodes[j].name] = (
                    value
                    if other.shapes[j] != net.shapes[j] or call.outs[0] is not None
                    else (net.arrays[net.nodes[j].name])
                )
    return replace(other, arrays=arrays)


def redrawn(net: Network, seed: int) -> Network:
    """The same architecture with new weights, drawn as by Gluon's MSRAPrelu (He et al. 2015), and untrained norms."""
    rng, arrays, held = np.random.default_rng(seed), {}, frozen(net)
    for call in net.structure.calls.values():
        for k, (j, _) in enumerate(call.node.inputs):
            name = net.nodes[j].name
            if not net.is_array(j) or name in arrays or name in held:
                continue
            shape = net.arrays[name].shape
            if k == call.operator.weight:
                fans = np.prod(shape[1:]), shape[0] * np.prod(shape[2:])
                arrays[name] = rng.normal(0, np.sqrt(2 / (1 + 0.25**2) / np.mean(fans)), shape)
            elif call.operator.is_norm:
                arrays[name] = np.full(shape, float(k in (1, 4)))  # scale and variance
            elif k == call.bias:
                arrays[name] = np.zeros(shape)
    return net.with_arrays({name: value.astype(np.float32) for name, value in arrays.items()})


def padded(net: Network, multiple: int) -> Tuple[Network, Dict[str, Tuple[np.ndarray, ...]]]:
    """The same function with idle channels that pad groups to a multiple; and the places of the original values.

    An idle channel is produced, scaled and read by zeros, so that its gradients and those of the weights that read it
    are zero: training leaves it unchanged, and changes the other channels as it would without it. The groups' original
    units come first. A group is not padded where this would not hold: after operators that do not map zero to zero, in
    grouped convolutions, and where a shuffle would mix idle channels with the others. The second result maps the name
    of each array that became larger to the index of the original values in it.
    """
    structure = net.structure
    fixed = np.zeros(len(structure.sizes), bool)
    for call in structure.calls.values():
        if call.operator.weight is not None:
            grouped = not is_depthwise(net, call.i) and int(call.node.literal("num_group", 1)) > 1
            for x in (call.ins[0], *call.outs) if grouped else () if call.zeroable[0] else call.ins[:1]:
                if x is not None:
                    fixed[structure.groups_in(x.labels)] = True
    while True:
        widths = {g.name: g.size if held else -(-g.size // multiple) * multiple for g, held in zip(net.groups, fixed)}
        if widths == net.widths:
            return net, {}
        wide = _at_widths(net, widths)
        shapes = {n.name: wide.shapes[i][0] for i, n in enumerate(net.nodes) if net.is_array(i)}
        wide = replace(wide, arrays={name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        moved = _moved(net, wide)
        if not moved.any():
            break
        fixed |= moved
    own = alive_units(wide, {name: range(n) for name, n in net.widths.items()})
    arrays = {name: value for name, value in net.arrays.items() if value.shape == shapes[name]}
    places: Dict[str, Tuple[np.ndarray, ...]] = {}
    for call in wide.structure.calls.values():
        for k, axes in call.arrays.items():
            name = net.nodes[call.node.inputs[k][0]].name
            if name not in arrays:
                along = [axes.get(axis, np.full(n, -1)) for axis, n in enumerate(shapes[name])]
                places[name] = np.ix_(*[np.flatnonzero((labels < 0) | own[labels]) for labels in along])
                is_variance = call.operator.is_norm and k == 4
                arrays[name] = np.full(shapes[name], float(is_variance), np.float32)
                arrays[name][places[name]] = net.arrays[name]
    return replace(wide, arrays=arrays), places


def _moved(net: Network, wide: Network) -> np.ndarray:
    """Per group of `net`, whether any tensor or array of `wide`, idle channels aside, orders its units differently."""
    structure, n = net.structure, len(net.structure.group_of)
    if list(wide.widths) != list(net.widths):
        return np.ones(len(structure.sizes), bool)
    unit = np.full(len(wide.structure.group_of) + 1, n)  # unit of `wide` -> unit of `net`; n if idle
    for a, b in zip(net.groups, wide.groups):
        unit[b.start : b.start + min(a.size, b.size)] = np.arange(a.start, a.start + min(a.size, b.size))
    unit[-1], moved = -1, np.zeros(len(structure.sizes), bool)

    def labels_of(call: Call) -> List[Optional[np.ndarray]]:
        along = [labels for _, axes in sorted(call.arrays.items()) for _, labels in sorted(axes.items())]
        return [*(x if x is None else x.labels for x in (*call.ins, *call.outs)), *along]

    for i, call in structure.calls.items():
        for before, after in zip(labels_of(call), labels_of(wide.structure.calls[i])):
            found = None if after is None else unit[after][unit[after] < n]
            if (before is None) != (found is None) or before is not None and not np.array_equal(before, found):
                for labels in (before, found):
                    moved[structure.groups_in(labels) if labels is not None else []] = True
    return moved


# ---- moving constants -----------------------------------------------------------------------------------------------


def _with_biases(net: Network) -> Network:
    """The network with a zero bias for each layer whose missing constant would reach an operator it cannot pass."""
    structure, exposed = net.structure, {t: True for t in net.outputs}
    bare, lacking = set(), {}
    for i, call in structure.calls.items():
        lacking[i] = not call.operator.is_norm and any(
            x is not None and (lacking.get(j, False) or call.made is not None and (x.labels >= 0).any())
            for (j, _), x in zip(call.node.inputs, call.ins)
        )
    for i in sorted(structure.calls, reverse=True):
        call = structure.calls[i]
        here = any(exposed.get((i, o), False) for o in range(len(call.outs)))
        layer = call.operator.weight is not None
        if layer and call.bias is None and here and lacking[i]:
            bare.add(i)
        absorbs = call.operator.is_norm or call.made is not None
        stops = here and not absorbs or not _passes(net, call)
        for t in call.node.inputs:
            exposed[t] = exposed.get(t, False) or stops
    if not bare:
        return net
    arrays = dict(net.arrays)

    def edit(i: int, node: Node, add: Callable) -> int:
        if i in bare:
            n = len(structure.calls[i].outs[0].labels)
            name = net.unused(layer_name(node.name) + "_bias")
            arrays[name] = np.zeros(n, np.float32)
            at = add(Node("null", name, {}), ((n,),))
            node = replace(node, attrs={**node.attrs, "no_bias": "False"}, inputs=(*node.inputs, (at, 0)))
        return add(node, net.shapes[i])

    return rewrite(net, edit, arrays)


def _passes(net: Network, call: Call) -> bool:
    """Whether constants that its input channels lack are constants that its outputs lack, the same at all positions."""
    if call.outs[0] is None or not call.operator.additive(call):
        return False
    if call.operator.is_norm or call.operator.weight is not None:
        return True
    ds = [np.zeros((1,) * len(s) if x is None else x.spread(len(s)).shape) for s, x in zip(call.shapes, call.ins)]
    made = call.operator.shift(call.using(net.arrays), ds)
    return all(out.even(y.shape) for out, y in zip(call.outs, made) if out is not None)


def _with_constants(
    net: Network, alive: np.ndarray, silenced: Optional[Mapping[str, np.ndarray]]
) -> Dict[str, np.ndarray]:
    """The network's arrays after the constants of the dropped channels have moved into norms and biases.

    One pass in topological order, in float64. `moments[t]`: means and variances of the channels of tensor t, computed
    from the `silenced` arrays where these are given, and only where a layer that loses inputs needs them. `missing[t]`:
    what the kept channels of t lack once the dropped channels upstream are removed, if anything.
    """
    arrays, structure = dict(net.arrays), net.structure
    values = net.arrays if silenced is None else silenced
    moments: Dict[Tensor, Gaussian] = {}
    missing: Dict[Tensor, np.ndarray] = {}

    def operands(call: Call) -> List[Gaussian]:
        xs = []
        for k, (t, s) in enumerate(zip(call.node.inputs, call.shapes)):
            if call.is_array(k):
                # Arrays of layers are parameters, not operands with values per channel.
                operand = call.operator.weight is None
                value = values[net.nodes[t[0]].name].astype(np.float64) if operand else np.zeros((1,) * len(s))
                xs.append(Gaussian(value, np.zeros_like(value)))
            else:
                xs.append(moments.get(t) or Gaussian(np.zeros((1,) * len(s)), np.ones((1,) * len(s))))
        return xs

    layers = [i for i, call in structure.calls.items() if call.operator.weight is not None and call.made is not None]
    dead = {i: _dropped_inputs(structure.calls[i], alive) for i in layers}
    losing = {i for i in layers if dead[i].any()}
    needed: Set[int] = set()  # nodes the moments of whose outputs are needed
    for i in sorted(structure.calls, reverse=True):
        if i in losing or i in needed:
            needed.update(j for j, _ in structure.calls[i].node.inputs)

    for i, call in structure.calls.items():
        if all(x is None for x in call.ins) and all(out is None for out in call.outs):
            continue
        lacking = any(t in missing for t in call.node.inputs)
        if not (lacking or i in losing or i in needed):
            continue
        before_norm = all(is_norm(net, r) for r in net.readers[i, 0])
        call = call.using(values, exact=silenced is not None, before_norm=before_norm)
        xs, out, made = operands(call) if i in losing or i in needed else [], call.outs[0], []
        ds = [missing.get(t, np.zeros((1,) * len(s))) for t, s in zip(call.node.inputs, call.shapes)]
        if call.operator.is_norm and out is not None:
            if lacking:
                mean = net.nodes[call.node.inputs[3][0]].name
                d = np.broadcast_to(
                    ds[0].mean(axis=tuple(a for a in range(ds[0].ndim) if a != out.axis)), arrays[mean].shape
                )
                arrays[mean] = (arrays[mean] - d / len(net.readers[call.node.inputs[3]])).astype(np.float32)
        elif i in dead:
            if lacking or i in losing:
                made = [_lost(call, xs, ds[0], dead[i], arrays)]
        elif lacking:
            made = call.operator.shift(call.using(net.arrays), ds)
            if call.operator.weight is not None and call.bias is not None and out is not None and made[0].any():
                _add_bias(call, made[0], out, arrays)
                made = []
        if i in needed and any(out is not None for out in call.outs):  # what carries no labels is unknown
            moments.update({(i, o): y for o, y in enumerate(call.operator.moments(call, xs))})
        for o, d in enumerate(made):
            labels = call.outs[o]
            if labels is not None and d.any():  # dropped channels themselves lack nothing
                gone = labels.spread(len(call.out_shapes[o]), (labels.labels >= 0) & ~alive[labels.labels])
                d = np.where(gone, 0.0, d)
            if d.any():
                missing[i, o] = d
    return arrays


def _dropped_inputs(call: Call, alive: np.ndarray) -> np.ndarray:
    """Which inputs of a layer are dropped channels."""
    labels = call.read if call.read is not None else np.full(call.shapes[0][1], -1)
    return (labels >= 0) & ~alive[labels]


def _lost(call: Call, xs: List[Gaussian], d: np.ndarray, dead: np.ndarray, arrays: Dict[str, np.ndarray]) -> np.ndarray:
    """What a layer's outputs lack once the dropped channels that it reads are removed; zeros if its bias absorbs it."""
    rank = len(call.out_shapes[0])
    lost = call.operator.read(call, d)
    if dead.any():
        if call.exact and call.operator.read(call, xs[0].variance)[dead].any():
            raise AssertionError(f"a dropped channel that '{call.node.name}' reads is not constant")
        lost = np.where(dead, call.operator.read(call, xs[0].mean), lost)
    if not lost.any():
        return np.zeros((1,) * rank)
    y = call.operator.lost(call, lost)
    if call.bias is None:
        return y
    _add_bias(call, y, call.outs[0], arrays)
    return np.zeros((1,) * rank)


def _add_bias(call: Call, y: np.ndarray, out: Channels, arrays: Dict[str, np.ndarray]) -> None:
    """Add `y`, averaged over positions, to a layer's bias; if several layers share the bias, each adds its part."""
    net, bias = call.walk.net, call.node.inputs[call.bias]
    name, n = net.nodes[bias[0]].name, len(net.readers[bias])
    y = y.mean(axis=tuple(a for a in range(y.ndim) if a != out.axis)) / n
    arrays[name] = (arrays[name] + y).astype(np.float32)


# ---- scales ---------------------------------------------------------------------------------------------------------


def squared_input_norms(net: Network, layer: str) -> np.ndarray:
    """`||W[:, j]||_F^2` for each input j that a conv or dense layer reads, shape (inputs,), float64."""
    call = net.structure.calls[net.index[layer]]
    squares = np.square(net.arrays[net.weight(layer)], dtype=np.float64)
    if is_depthwise(net, call.i):
        return squares.reshape(call.shapes[0][1], -1).sum(1)
    return call.operator.taps(call, squares).sum((1, 3)).reshape(-1)


def filters(net: Network) -> Iterator[Tuple[str, np.ndarray]]:
    """Layers that produce prunable channels, each with its weights as a matrix with one row per output channel."""
    for layer in dict.fromkeys(layer for g in net.groups for layer in g.producers):
        call = net.structure.calls[net.index[layer]]
        w = call.operator.taps(call, net.arrays[net.weight(layer)])
        yield layer, w.reshape(w.shape[0] * w.shape[1], -1)


def stream_norms(net: Network) -> np.ndarray:
    """Per stream, the squared norm of the weights that read it, summed over readers: eq. 2's `||W_l[:, j]||^2`.

    A dense layer after a flatten reads each channel at several positions, a depthwise conv with one kernel.
    """
    total = np.zeros(net.streams.n)
    for i, streams in net.streams.readers.items():
        np.add.at(total, streams, squared_input_norms(net, net.nodes[i].name))
    return total


def rescale(net: Network) -> Network:
    """The same function with the weights that read each stream scaled to unit norm, where factors pass (section 4.2).

    ReLU, pooling and addition are positively homogeneous, so `||W[:, j]||` moves into the scale and shift of the norms
    that produce channel j. A channel that nothing reads keeps its scale, and so do the channels of streams that pass
    through relu6 or a sigmoid.
    """
    streams, arrays = net.streams, dict(net.arrays)
    s = np.sqrt(stream_norms(net))
    s = np.where((s > 0) & ~streams.held, s, 1.0)
    for i, of in streams.sources.items():
        if is_scale(net, i) and not streams.held[of].all():
            for name in net.norm_arrays(net.nodes[i].name):
                if name is not None:
                    arrays[name] = (arrays[name] * s[of].reshape(arrays[name].shape)).astype(np.float32)
    for i, of in streams.readers.items():
        if streams.held[of].all():
            continue
        name, axis = net.weight(net.nodes[i].name), 1 - net.structure.calls[i].operator.out_axis
        by = s[of]
        if is_depthwise(net, i):
            axis, by = 0, np.repeat(by, len(arrays[name]) // len(by))
        shape = [1] * arrays[name].ndim
        shape[axis] = -1
        # Divided in float64 and rounded once, without a float64 copy of the weights.
        w = arrays[name]
        arrays[name] = np.divide(w, by.reshape(shape), out=np.empty_like(w), dtype=np.float64, casting="same_kind")
    return net.with_arrays(arrays)


def with_zero_residuals(net: Network) -> Network:
    """The network with scales of 0 at the end of every residual branch, so that each block starts as its shortcut.

    He et al., "Bag of Tricks", CVPR 2019, section 3.1. GluonCV's `last_gamma` does the same, except for the basic
    blocks of version 1b. UserError: no residual branch ends in a norm.
    """
    scales = [net.norm_arrays(norm)[0] for norm in residual_norms(net)]
    if not scales:
        raise UserError(
            f"network '{net.name}': no residual branch ends in a batch norm; set train.last_gamma_zero to false"
        )
    return net.with_arrays({name: np.zeros_like(net.arrays[name]) for name in scales})


def variances(net: Network) -> Dict[Tensor, np.ndarray]:
    """Per tensor, the variance of each channel, taken to be the squared scale of the norms that produce it.

    Additions add variances; channels that no norm or gate scales count as 1. Arrays have the rank of their tensor.
    """
    found: Dict[Tensor, np.ndarray] = {}
    for i, call in net.structure.calls.items():
        call = call.using(net.arrays)
        xs = [found.get(t, np.ones((1,) * len(s))) for t, s in zip(call.node.inputs, call.shapes)]
        out = call.outs[0]
        if out is None:
            continue
        rank = len(call.out_shapes[0])
        if is_norm(net, i):
            made = [out.spread(rank, call.value(1).astype(np.float64) ** 2)]
        elif is_gate(net, i):
            made = [xs[0] * call.value(1).astype(np.float64) ** 2]
        elif is_depthwise(net, i):
            each = call.operator.taps(call, np.square(call.value(1), dtype=np.float64)).sum((2, 3)).reshape(-1)
            m = len(each) // call.shapes[0][1]
            made = [out.spread(rank, np.repeat(call.operator.read(call, xs[0]), m) * each * call.operator.met(call))]
        elif has_weight(call.node):
            made = [out.spread(rank, np.ones(len(out.labels)))]
        else:
            made = call.operator.gather(call, xs)
        found.update({(i, o): y for o, y in enumerate(made)})
    return found
