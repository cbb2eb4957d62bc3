"""Which channels of a network must be kept or removed together, where a scale can silence them, and what reads them.

One walk gives every channel of every tensor a label: fresh labels at each layer's output, which the operators pass on,
join, slice and unite (`gcp.graph.operators`). Labels that were united form one *unit*, which is kept or removed as a
whole. Label 0 stands for fixed channels, which are always kept: those of the image and the outputs, and those read by
operators that mix channels or are unknown. A `Group` consists of all units with the same producers, the same readers
and the same slices.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from gcp.graph.operators import ANY, CONSTANT, EVEN, ZERO, Channels, Convolution, Gaussian, Product, Slice, operator

if TYPE_CHECKING:
    from gcp.graph.network import Network, Node

Tensor = Tuple[int, int]  # position of a node, and number of one of its outputs
FROZEN = "__lr_mult__"  # MXNet's own attribute; 0.0 on variables that no optimiser may touch
GATE = "__gate__"  # marks the arrays that this project made to scale channels; see `surgery.with_gates`


@dataclass(frozen=True)
class Group:
    """Prunable units of channels with the same producers and readers; `size` is the number of units.

    `producers`: the convs and dense layers that produce the channels; `consumers`: those that read them; `norms`: the
    batch norms or gates that scale them, empty where a gate is still needed (`surgery.with_gates`); `depthwise`: the
    depthwise convs that pass them through. All are node names. `start`: index of the group's first unit among all.
    """

    name: str
    size: int
    producers: Tuple[str, ...]
    consumers: Tuple[str, ...]
    norms: Tuple[str, ...]
    depthwise: Tuple[str, ...]
    start: int = 0


class Call:
    """One node as its operator sees it: shapes and labels of its inputs and outputs, and what the operator declares.

    `ins[k]` and `outs[o]` are None where no channels are labelled. After the walk, labels are unit numbers, and -1
    for fixed channels. `arrays[k][axis]`: the labels along an axis of input k, where that input is an array.
    """

    exact = False  # moments only have to distinguish constants from channels that vary
    before_norm = False  # only norms read the output
    arrays_of: Mapping[str, np.ndarray] = {}  # array name -> values; see `using`

    def __init__(self, walk: "Walk", i: int) -> None:
        net = walk.net
        self.walk, self.i, self.node, self.operator = walk, i, net.nodes[i], operator(net.nodes[i].op)
        self.shapes = [net.shapes[j][o] for j, o in self.node.inputs]
        self.out_shapes = net.shapes[i]
        self.ins: List[Optional[Channels]] = [walk.tensors.get(t) for t in self.node.inputs]
        self.outs: List[Optional[Channels]] = [None] * len(self.out_shapes)
        self.arrays: Dict[int, Dict[int, np.ndarray]] = {}
        self.read: Optional[np.ndarray] = None
        self.made: Optional[np.ndarray] = None
        self.zeroable: List[bool] = []

    def is_array(self, k: int) -> bool:
        """Whether input k is an array of the network."""
        return self.walk.net.is_array(self.node.inputs[k][0])

    def value(self, k: int) -> np.ndarray:
        """The values of input k, an array, among those given to `using`."""
        return self.arrays_of[self.walk.net.nodes[self.node.inputs[k][0]].name]

    def using(self, arrays: Mapping[str, np.ndarray], exact: bool = False, before_norm: bool = False) -> "Call":
        """A copy of this call that has values for its arrays."""
        call = copy.copy(self)
        call.arrays_of, call.exact, call.before_norm = arrays, exact, before_norm
        return call

    @property
    def bias(self) -> Optional[int]:
        """Position of a layer's bias among the inputs, None if it has no bias."""
        k = self.operator.weight
        return None if k is None or len(self.ins) <= k + 1 else k + 1

    @property
    def shares(self) -> bool:
        """Whether other nodes also read this layer's arrays, or those of a norm that follows it."""
        net = self.walk.net
        norms = [i for i in net.readers[self.i, 0] if is_norm(net, i)]
        return any(len(net.readers[t]) > 1 for i in (self.i, *norms) for t in net.nodes[i].inputs if net.is_array(t[0]))

    def along(self, k: int, axis: int) -> np.ndarray:
        """Labels of input k along this axis; if another axis carries the labels, the channels are fixed."""
        x = self.ins[k]
        if x is not None and x.axis == axis:
            return x.labels
        if x is not None:
            self.walk.fix(x.labels)
        return np.zeros(self.shapes[k][axis], np.int64)

    def put(self, o: int, axis: int, labels: np.ndarray) -> np.ndarray:
        """Set the labels of output o: of shape (channels,), or of the output's rank and then tied along all other axes.

        Returns the labels, shape (channels,).
        """
        if labels.ndim > 1:
            rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
            if rows.shape[1] > 1:
                self.unite(rows[:, 1:], np.broadcast_to(rows[:, :1], rows[:, 1:].shape))
            labels = rows[:, 0]
        self.outs[o] = Channels(axis, labels)
        return labels

    def passes(self) -> None:
        """Pass the labels of input 0 to every output."""
        if self.ins[0] is not None:
            for o in range(len(self.outs)):
                self.put(o, self.ins[0].axis, self.ins[0].labels)

    def makes(self, o: int, axis: int) -> np.ndarray:
        """Give output o fresh labels, and return them."""
        self.made = self.walk.fresh(self.out_shapes[o][axis])
        self.outs[o] = Channels(axis, self.made)
        return self.made

    def reads(self, labels: np.ndarray) -> None:
        """Declare that the operator is a layer that reads these channels to produce new ones."""
        self.read = labels

    def array(self, k: int, axis: int, labels: Optional[np.ndarray]) -> None:
        """Label an axis of input k if it is an array; the labels of all nodes that read the same array are united."""
        if labels is None or not self.is_array(k):
            return
        self.arrays.setdefault(k, {})[axis] = labels
        self.walk.share((self.node.inputs[k][0], axis), labels)

    def unite(self, a: np.ndarray, b: np.ndarray) -> None:
        """Unite labels index by index: their channels are kept or removed together."""
        self.walk.unite(a, b)

    def fix(self, inputs: bool = False) -> None:
        """Fix all channels that the node reads; unless `inputs`, its outputs carry no labels either."""
        for x in self.ins:
            if x is not None:
                self.walk.fix(x.labels)
        if not inputs:
            self.outs = [None] * len(self.outs)


class Walk:
    """The labels of all tensors, and which labels have been united."""

    def __init__(self, net: "Network") -> None:
        self.net = net
        self.tensors: Dict[Tensor, Channels] = {}
        self.calls: Dict[int, Call] = {}
        self._n, self._pairs, self._shared = 1, [], {}

    def fresh(self, n: int) -> np.ndarray:
        """n labels that are not in use yet."""
        self._n += n
        return np.arange(self._n - n, self._n)

    def unite(self, a: np.ndarray, b: np.ndarray) -> None:
        """Unite two arrays of labels index by index."""
        if a is not b:
            self._pairs.append(np.stack([np.ravel(a), np.ravel(b)]))

    def fix(self, labels: np.ndarray) -> None:
        """Fix these labels, like those of the image."""
        self.unite(labels, np.zeros_like(labels))

    def share(self, key: Tuple[int, int], labels: np.ndarray) -> None:
        """Unite the labels that all readers of an array give to one of its axes; `key` is (node, axis)."""
        self.unite(self._shared.setdefault(key, labels), labels)

    def begin(self) -> None:
        """Start with the image, whose channels are fixed."""
        shape = self.net.shapes[self.net.data][0]
        if len(shape) > 1:
            self.tensors[self.net.data, 0] = Channels(1, np.zeros(shape[1], np.int64))

    def step(self, i: int) -> Call:
        """Visit one node: let its operator label the outputs, store these labels, and return the call."""
        call = self.calls[i] = Call(self, i)
        if call.operator.weight is not None or any(x is not None for x in call.ins):
            call.operator.channels(call)
        self.keep(call)
        return call

    def keep(self, call: Call) -> None:
        """Store the labels of a call's outputs."""
        for o, out in enumerate(call.outs):
            if out is not None:
                self.tensors[call.i, o] = out

    def components(self) -> np.ndarray:
        """Label -> component of united labels; that of label 0 is 0."""
        pairs = np.concatenate(self._pairs, axis=1) if self._pairs else np.zeros((2, 0), np.int64)
        graph = sparse.coo_matrix((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(self._n, self._n))
        return csgraph.connected_components(graph, directed=False)[1]


class Structure:
    """The channels of a network: groups, and the unit of every channel of every tensor and array.

    `calls[i]` is node i as its operator sees it; its labels are unit numbers, and -1 for fixed channels.
    `tensors[i, o]` has the labels of output o of node i. `unknown`: the nodes whose operators are not known.
    """

    def __init__(self, net: "Network") -> None:
        # Without the arrays' values, so that networks with the same graph can share one structure and none of them
        # keeps another's arrays in memory.
        hollow = {name: np.broadcast_to(np.float32(0), value.shape) for name, value in net.arrays.items()}
        self.net = net = replace(net, arrays=hollow)
        pinned: List[Tensor] = []
        while True:  # repeated if a dropped channel cannot have the value that its readers need
            walk = Walk(net)
            walk.begin()
            for i, node in enumerate(net.nodes):
                if node.op != "null":
                    walk.step(i)
            for t in [*net.outputs, *pinned]:
                if t in walk.tensors:
                    walk.fix(walk.tensors[t].labels)
            self.calls, self.tensors = walk.calls, walk.tensors
            demand, impossible = _demand(net, walk)
            if set(impossible) <= set(pinned):
                break
            pinned += impossible
        self.unknown: List["Node"] = [
            call.node for call in walk.calls.values() if not call.operator.known and any(call.ins)
        ]
        if self.unknown:
            more = f" (other such nodes: {len(self.unknown) - 1})" if len(self.unknown) > 1 else ""
            warnings.warn(
                f"network '{net.name}': operator '{self.unknown[0].op}' at node '{self.unknown[0].name}' is not "
                f"known{more}; the channels that it reads are not pruned",
                stacklevel=2,
            )
        self._forms: Dict[int, Tuple[np.ndarray, Dict[Optional[str], int]]] = {}  # id of labels -> them, their form
        self._number(walk.components())
        self._scale(demand)

    # ---- units and groups ----

    def _number(self, component: np.ndarray) -> None:
        """Numbers the units, group by group in the order of the first producers, and replaces all labels by them."""
        layers = [call for call in self.calls.values() if call.made is not None or call.read is not None]
        slices = [out.labels for c in self.calls.values() if isinstance(c.operator, Slice) for out in c.outs if out]
        parts = [labels for call in layers for labels in (call.made, call.read) if labels is not None]
        parts += slices  # so that no slice can be left empty
        # A hash of the multiset of producers and readers; sums of integers are exact in float64 below 2^53.
        random = np.random.default_rng(0).integers(2**40, size=len(parts)).astype(np.float64)
        numbers = np.repeat(random, [len(labels) for labels in parts])
        key = np.bincount(component[np.concatenate(parts)], numbers, component.max() + 1) if parts else np.zeros(1)
        first = np.full(len(key), len(component))
        for call in layers:
            if call.made is not None:
                np.minimum.at(first, component[call.made], call.made)
        prunable = np.flatnonzero(first < len(component))
        prunable = prunable[prunable != component[0]]
        prunable = prunable[np.argsort(first[prunable], kind="stable")]
        _, start, of = np.unique(key[prunable], return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(start))[of]  # groups in the order of their first units
        order = np.argsort(rank, kind="stable")
        number = np.full(len(key), -1)
        number[prunable[order]] = np.arange(len(prunable))
        self.group_of = rank[order]  # unit -> group
        self.sizes = np.bincount(self.group_of, minlength=0)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        units, done = number[component], {}

        def numbered(labels: np.ndarray) -> np.ndarray:
            if id(labels) not in done:
                done[id(labels)] = (units[labels], labels)  # keeps `labels` alive, so that its id is not reused
            return done[id(labels)][0]

        def channels(x: Optional[Channels]) -> Optional[Channels]:
            return None if x is None else Channels(x.axis, numbered(x.labels))

        for call in self.calls.values():
            call.ins, call.outs = [channels(x) for x in call.ins], [channels(x) for x in call.outs]
            call.arrays = {k: {a: numbered(v) for a, v in axes.items()} for k, axes in call.arrays.items()}
            call.made, call.read = (None if x is None else numbered(x) for x in (call.made, call.read))
        self.tensors = {t: channels(x) for t, x in self.tensors.items()}

    def groups_in(self, labels: np.ndarray) -> np.ndarray:
        """The numbers of the groups that these units belong to."""
        labels = labels[labels >= 0]
        return np.flatnonzero(np.bincount(self.group_of[labels])) if len(labels) else labels

    def form(self, labels: np.ndarray) -> Dict[Optional[str], int]:
        """The number of these channels as {group: channels per unit}, with the number of fixed channels under None."""
        of, found = self._forms.get(id(labels), (None, {}))
        if of is not labels:  # every cost asks for the same few arrays; kept alive, so that no other gets their id
            found = self._counted(labels)
            self._forms[id(labels)] = labels, found
        return dict(found)

    def _counted(self, labels: np.ndarray) -> Dict[Optional[str], int]:
        found = {}
        if (labels < 0).any():
            found[None] = int((labels < 0).sum())
        own = labels[labels >= 0]
        if len(own):
            counts = np.bincount(self.group_of[own])
            for g in np.flatnonzero(counts):
                found[self.names[g]] = int(counts[g] // self.sizes[g])
        return found

    @cached_property
    def names(self) -> List[str]:
        """The groups' names: that of the first layer that produces each, with a number where it produces several."""
        names, taken = [""] * len(self.sizes), {}
        for call in self.calls.values():
            for g in self.groups_in(call.made) if call.made is not None else ():
                if not names[g]:
                    base = layer_name(call.node.name)
                    taken[base] = taken.get(base, 0) + 1
                    names[g] = base if taken[base] == 1 else f"{base}.{taken[base]}"
        return names

    # ---- scales ----

    def _scale(self, demand: Mapping[Tensor, int]) -> None:
        """Decides for each group whether its norms can silence it, and where gates are needed (`missing_gates`)."""
        net, n = self.net, len(self.sizes)
        normed = np.zeros(n, bool)
        spoilt = np.zeros(n, bool)  # the norms of the group cannot silence it
        gated = np.zeros(n, bool)
        silenced: Dict[Tensor, bool] = {}
        for i, call in self.calls.items():
            sources = [silenced.get(t, True) for t, x in zip(call.node.inputs, call.ins) if x is not None]
            behind = call.operator.is_norm or is_gate(net, i) or (all(sources) and call.made is None)
            for o, out in enumerate(call.outs):
                if out is None:
                    continue
                silenced[i, o] = behind
                groups = self.groups_in(out.labels)
                if demand.get((i, o), ANY) == ZERO:
                    spoilt[groups] = True
                if is_gate(net, i):
                    gated[groups] = True
                elif call.operator.is_norm:
                    normed[groups] = True
                    held = net.nodes[call.node.inputs[1][0]].attrs.get(FROZEN) == "0.0"
                    if len(groups) > 1 or held or (len(groups) and (out.labels < 0).any()):
                        spoilt[groups] = True
            if call.read is not None and not all(sources):
                spoilt[self.groups_in(call.read)] = True
        self.by_norms = normed & ~spoilt & ~gated
        self.missing_gates: Dict[int, np.ndarray] = {}  # node -> units that a gate after it would scale, else -1
        self.demand = demand
        readers = net.readers
        for i, call in self.calls.items():
            if call.outs[0] is None or (call.made is None and not _shifts(call)):
                continue
            wanted, after = demand.get((i, 0), ANY), readers[i, 0]
            if wanted == ANY or call.made is not None and len(after) == 1 and self._takes_gate(after[0]):
                continue
            if _shifts(call) and wanted != ZERO and not self._takes_gate(i):
                continue
            labels = call.outs[0].labels
            own = labels >= 0
            own[own] = ~(self.by_norms | gated)[self.group_of[labels[own]]]
            if own.any():
                self.missing_gates[i] = np.where(own, labels, -1)
        self.gated = gated

    def _takes_gate(self, i: int) -> bool:
        """Whether node i is a norm and the only reader of a layer's output, so that a gate goes after the norm."""
        call = self.calls.get(i)
        if call is None or not call.operator.is_norm:
            return False
        source = call.node.inputs[0]
        made = self.calls.get(source[0])
        passes = made is not None and (made.made is not None or made.operator.weight is not None)
        return passes and len(self.net.readers[source]) == 1

    def units_of(self, node: int) -> np.ndarray:
        """Per entry of the scale of a batch norm or gate, the unit that it silences.

        -1 where the channel is fixed, or where something else silences it.
        """
        labels = self.calls[node].outs[0].labels if self.calls[node].outs[0] is not None else np.zeros(0, int)
        if not len(self.group_of):
            return labels
        mine = self.by_norms if self.calls[node].operator.is_norm else self.gated
        return np.where((labels >= 0) & mine[self.group_of[labels]], labels, -1)

    @cached_property
    def groups(self) -> Tuple[Group, ...]:
        """All groups, in the order of their first producers."""
        rows = [{"producers": [], "consumers": [], "norms": [], "depthwise": []} for _ in self.sizes]
        for i, call in self.calls.items():
            name, out = call.node.name, call.outs[0]
            for key, labels in (
                ("producers", call.made),
                ("consumers", call.read),
                ("norms", self.units_of(i) if out is not None and is_scale(self.net, i) else None),
                ("depthwise", out.labels if out is not None and is_depthwise(self.net, i) else None),
            ):
                for g in self.groups_in(labels) if labels is not None else ():
                    rows[g][key].append(name)
        return tuple(
            Group(self.names[g], int(self.sizes[g]), *(tuple(v) for v in row.values()), int(self.starts[g]))
            for g, row in enumerate(rows)
        )


def _demand(net: "Network", walk: Walk) -> Tuple[Dict[Tensor, int], List[Tensor]]:
    """What a dropped channel has to be at every tensor (`ANY` to `ZERO`), and the tensors where it cannot be that.

    Layers need constants, which can be moved into what follows. Products need a zero in one factor. Gates make zeros,
    after a layer or after its norm. Where constants would differ between positions, zeros do not.
    """
    zeroable: Dict[Tensor, bool] = {}
    shapes: Dict[Tensor, Tuple[int, ...]] = {}  # of what dropped channels are, where they are constants
    for i, call in walk.calls.items():
        call.zeroable = [zeroable.get(t, False) for t in call.node.inputs]
        mine = [z for z, x in zip(call.zeroable, call.ins) if x is not None]
        if call.made is not None or _shifts(call):
            able = True
        elif isinstance(call.operator, Product):
            able = call.zeroable[call.operator.main(call)]
        else:
            able = all(mine) and call.operator.from_zero(call) == ZERO
        for o, shape in enumerate(_constant_shapes(call, [shapes.get(t) for t in call.node.inputs])):
            zeroable[i, o], shapes[i, o] = able, shape
    demand: Dict[Tensor, int] = {}
    impossible = []
    for i in sorted(walk.calls, reverse=True):
        call = walk.calls[i]
        wanted = max((demand.get((i, o), ANY) for o in range(len(call.outs))), default=ANY)
        if all(x is None for x in call.ins):
            continue
        if wanted == EVEN:
            outs = [(o, out) for o, out in enumerate(call.outs) if out is not None]
            if all(out.even(shapes[i, o]) for o, out in outs):
                wanted = CONSTANT
            elif not all(out.even(_constant_shapes(call)[o]) for o, out in outs):
                wanted = ZERO
        if _shifts(call) and wanted == ZERO:
            wanted = ANY  # a gate after the node makes the zero
        elif call.made is None and wanted > call.operator.from_zero(call):
            impossible.append((i, 0))
        for t, d, x in zip(call.node.inputs, call.operator.demand(call, wanted), call.ins):
            if x is not None:
                demand[t] = max(demand.get(t, ANY), d)
    return demand, [t for t in impossible if t in walk.tensors]


def _constant_shapes(call: Call, shapes: Sequence[Optional[Tuple[int, ...]]] = ()) -> List[Tuple[int, ...]]:
    """Per output, the shape of what dropped channels are there, where they are constants of these shapes at the inputs.

    A constant of the channel alone stands for each shape that is None or not given.
    """
    outs = [(1,) * len(s) if out is None else out.spread(len(s)).shape for s, out in zip(call.out_shapes, call.outs)]
    if call.operator.weight is not None or all(out is None for out in call.outs):
        return outs  # a layer reads what does not depend on positions
    xs = []
    for k, (x, s) in enumerate(zip(call.ins, call.shapes)):
        shape = shapes[k] if k < len(shapes) else None
        if shape is None:
            shape = s if call.is_array(k) else (1,) * len(s) if x is None else x.spread(len(s)).shape
        xs.append(Gaussian(np.ones(shape), np.zeros(shape)))
    call = call.using(call.walk.net.arrays, exact=True)  # only their shapes matter
    with np.errstate(all="ignore"):
        return [y.mean.shape for y in call.operator.moments(call, xs)]


def _shifts(call: Call) -> bool:
    """Whether the node passes channels and adds values of its own: a norm, or a depthwise conv with a bias.

    A zero before such a node is not a zero after it, but a gate after it scales the added values as well.
    """
    return call.operator.is_norm or call.made is None and call.bias is not None


# ---- questions about nodes ------------------------------------------------------------------------------------------


def is_gate(net: "Network", i: int) -> bool:
    """Whether node i multiplies channels by a gate of this project."""
    node = net.nodes[i]
    return node.op == "broadcast_mul" and GATE in net.nodes[node.inputs[1][0]].attrs


def is_norm(net: "Network", i: int) -> bool:
    """Whether node i is a batch norm."""
    return operator(net.nodes[i].op).is_norm


def is_scale(net: "Network", i: int) -> bool:
    """Whether node i is a batch norm or a gate."""
    return is_norm(net, i) or is_gate(net, i)


def is_depthwise(net: "Network", i: int) -> bool:
    """Whether node i is a depthwise conv: one or more filters per input channel, each reading only that channel."""
    op = operator(net.nodes[i].op)
    return isinstance(op, Convolution) and op.ties(Call(Walk(net), i)) == "depthwise"


def has_weight(node: "Node") -> bool:
    """Whether the node is a conv or a dense layer."""
    return operator(node.op).weight is not None


def layer_widths(net: "Network") -> Dict[str, Tuple[int, Tuple[str, ...]]]:
    """For each conv and dense layer with removable output channels, in order: their number, and their groups."""
    found, structure = {}, net.structure
    for call in structure.calls.values():
        if has_weight(call.node) and call.outs[0] is not None:
            form = structure.form(call.outs[0].labels)
            if groups := tuple(name for name in form if name is not None):
                found[layer_name(call.node.name)] = (len(call.outs[0].labels), groups)
    return found


def is_layer(net: "Network", i: int) -> bool:
    """Whether node i is a conv or dense layer that produces new channels."""
    return has_weight(net.nodes[i]) and not is_depthwise(net, i)


def layer_name(node: str) -> str:
    """GluonCV's layer name for a node name: Gluon appends `_fwd` for the operator that a layer calls."""
    return node[: -len("_fwd")] if node.endswith("_fwd") else node


# ---- streams: where factors can move --------------------------------------------------------------------------------


class Streams:
    """Channels between the scales that produce them and the layers that read them, where a positive factor can move.

    Streams are found like units, but with fresh labels after every layer, norm and gate. `sources[i]` and `readers[i]`
    hold, by number, the streams that node i outputs and those that it reads. Stream 0, and any stream s with `held[s]`,
    does not let factors through unchanged. `unit[s]` is the unit that stream s belongs to, -1 for none.
    """

    def __init__(self, structure: Structure) -> None:
        net = structure.net
        walk = Walk(net)
        walk.begin()
        sources, readers, held = {}, {}, []
        for i, of in structure.calls.items():
            layer, scale = has_weight(net.nodes[i]), is_scale(net, i)
            if not (layer or scale):
                call = walk.step(i)
                if not call.operator.homogeneous(call):
                    held += [x.labels for x in (*call.ins, *call.outs) if x is not None]
                continue
            call = walk.calls[i] = Call(walk, i)
            x = call.ins[0]
            if x is not None and layer:
                by_input = of.arrays.get(call.operator.weight, {}).get(1 - call.operator.out_axis)
                if call.operator.axis(call) is None:  # a flatten
                    spread = np.broadcast_to(x.spread(len(call.shapes[0])), call.shapes[0])
                    readers[i] = spread.reshape(len(spread), -1)[0]
                else:
                    readers[i] = call.along(0, call.operator.axis(call))
                if not is_depthwise(net, i) and (by_input is None or len(by_input) != len(readers[i])):
                    held.append(x.labels)
            elif x is not None:
                held.append(x.labels)  # a norm cancels any factor, so there is nothing to gain upstream
            for o, out in enumerate(of.outs):
                if out is not None:
                    call.put(o, out.axis, walk.fresh(len(out.labels)))
                    sources[i] = call.outs[0].labels
            walk.keep(call)
        held += [walk.tensors[t].labels for t in net.outputs if t in walk.tensors]
        component = walk.components()
        self.n = int(component.max()) + 1
        self.sources = {i: component[x] for i, x in sources.items()}
        self.readers = {i: component[x] for i, x in readers.items()}
        self.unit = np.full(self.n, -1)
        self.held = np.zeros(self.n, bool)
        for i, streams in self.sources.items():
            labels = structure.calls[i].outs[0].labels
            self.unit[streams] = labels
            if not (is_scale(net, i) and (structure.units_of(i) == labels).all()):
                self.held[streams] = True
        for labels in held:
            self.held[component[labels]] = True
        self.held[component[0]] = True
