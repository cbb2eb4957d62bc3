"""The nouns: a network as graph + arrays, its channel groups, and what can be done to them.

A `Network` is the Symbol JSON of a GluonCV network, the shape of every node and a dict of numpy arrays. Channel
groups, masks, rescaling and physical removal are functions on it, so they work on every network whose operators
are known here and cannot disagree with each other. No MXNet in this room; `gcp.gluon` is the bridge.

Terms are those of Khetan & Karnin, "PruneNet: Channel Pruning via Global Importance", arXiv 2005.11282, section 4.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np

from gcp.errors import UserError

Widths = Dict[str, int]
Keep = Dict[str, np.ndarray]

ADD = {"elemwise_add", "broadcast_add", "_Plus", "_plus", "_add"}
NORM = {"BatchNorm"}
# What a constant becomes under each activation that the walk knows.
ACTIVATIONS = {
    "relu": lambda c: np.maximum(c, 0.0),
    "sigmoid": lambda c: 1.0 / (1.0 + np.exp(-c)),
    "tanh": np.tanh,
    "softrelu": lambda c: np.logaddexp(c, 0.0),
}
PASS = {"Activation", "relu", "LeakyReLU", "clip", "Pooling", "Dropout", "Flatten", "flatten", "_copy", "identity"}
MASK = "_mask"  # arrays of this suffix scale channels that no batch norm follows; see `with_masks`


@dataclass(frozen=True)
class Node:
    """One node of the Symbol graph; `inputs` are indices of the nodes it reads, in MXNet's order."""

    op: str
    name: str
    attrs: Mapping[str, str]
    inputs: Tuple[int, ...] = ()

    def literal(self, key: str, default=None):
        """The attribute as a Python number, tuple or bool; its MXNet default where the graph leaves it out."""
        text = self.attrs.get(key)
        if text is None:
            return default
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text


@dataclass(frozen=True)
class Group:
    """Channels that live or die together.

    `producers`: convs and dense layers whose outputs they are; `consumers`: those that read them; `norms`: the
    batch norms (or masks) that scale them; `depthwise`: depthwise convs that pass them through. All are node
    names; `size` is a number of channels. More than one norm makes a tied group.
    """

    name: str
    size: int
    producers: Tuple[str, ...]
    consumers: Tuple[str, ...]
    norms: Tuple[str, ...]
    depthwise: Tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """Nodes of one group between norms and the layers that read them, joined by everything that keeps scale.

    Multiplying all `sources` by s > 0 and dividing all `readers` by s leaves the network's function as it was,
    if `rescalable`. `reach` gives, for each reader, the sources whose sum arrives there: a block late in a
    residual stage reads more of them than an early one.
    """

    group: str
    sources: Tuple[str, ...]
    readers: Tuple[str, ...]
    reach: Mapping[str, Tuple[str, ...]]
    rescalable: bool


@dataclass(frozen=True, eq=False)
class Network:
    """Graph + arrays. `shapes[i]` is the shape of node i's first output without the batch axis.

    `arrays` maps variable names to numpy arrays (float32); `name` is the GluonCV network it came from.
    """

    name: str
    nodes: Tuple[Node, ...]
    output: int
    shapes: Tuple[Tuple[int, ...], ...]
    arrays: Mapping[str, np.ndarray]

    @property
    def input_shape(self) -> Tuple[int, ...]:
        """(channels, height, width) of one image."""
        return self.shapes[self.data]

    @property
    def n_classes(self) -> int:
        """Length of the output vector."""
        return self.shapes[self.output][0]

    @cached_property
    def data(self) -> int:
        """Index of the input variable: the only variable that has no array."""
        free = [i for i, n in enumerate(self.nodes) if n.op == "null" and n.name not in self.arrays]
        if len(free) != 1:
            names = ", ".join(self.nodes[i].name for i in free) or "none"
            raise UserError(
                f"network '{self.name}': expected one input without values, found {names}; "
                "the parameter file does not belong to this graph"
            )
        return free[0]

    @cached_property
    def index(self) -> Dict[str, int]:
        """Node name -> position."""
        return {n.name: i for i, n in enumerate(self.nodes)}

    @cached_property
    def groups(self) -> Tuple[Group, ...]:
        """The prunable channel groups, in the order of their first producers."""
        return self._walked[0]

    @cached_property
    def owner(self) -> Tuple[Optional[str], ...]:
        """Per node, the group that its output's channels belong to; None where they are fixed or no channels."""
        return self._walked[1]

    @cached_property
    def _walked(self):
        return _walk(self)

    @cached_property
    def streams(self) -> Tuple[Stream, ...]:
        """The streams of all prunable groups (see `Stream`)."""
        return _streams(self)

    @property
    def widths(self) -> Widths:
        """Group name -> number of channels."""
        return {g.name: g.size for g in self.groups}

    def weight(self, layer: str) -> str:
        """Name of the weight array of a conv or dense node."""
        return self.nodes[self.nodes[self.index[layer]].inputs[1]].name

    def bias(self, layer: str) -> Optional[str]:
        """Name of the bias array of a conv or dense node, None if it has none."""
        node = self.nodes[self.index[layer]]
        return None if node.literal("no_bias", False) else self.nodes[node.inputs[2]].name

    def norm_arrays(self, norm: str) -> Tuple[str, Optional[str]]:
        """Names of scale and shift of a batch norm; a mask is a scale without shift."""
        node = self.nodes[self.index[norm]]
        gamma = self.nodes[node.inputs[1]].name
        return (gamma, self.nodes[node.inputs[2]].name) if node.op in NORM else (gamma, None)

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> "Network":
        """The same graph with some arrays replaced by others of the same shapes."""
        for name, value in arrays.items():
            if self.arrays[name].shape != value.shape:
                raise ValueError(f"array '{name}': shape {value.shape}, expected {self.arrays[name].shape}")
        return replace(self, arrays={**self.arrays, **arrays})

    def to_json(self) -> str:
        """MXNet's Symbol JSON of the graph."""
        nodes = [
            {
                "op": n.op,
                "name": n.name,
                "inputs": [[i, 0, 0] for i in n.inputs],
                **({"attrs": dict(n.attrs)} if n.attrs else {}),
            }
            for n in self.nodes
        ]
        variables = [i for i, n in enumerate(self.nodes) if n.op == "null"]
        return json.dumps(
            {
                "nodes": nodes,
                "arg_nodes": variables,
                "heads": [[self.output, 0, 0]],
                "attrs": {"mxnet_version": ["int", 10901]},
            },
            indent=1,
        )


def parse_nodes(text: str) -> Tuple[Tuple[Node, ...], int]:
    """Nodes and output index of a Symbol JSON text.

    Raises UserError where the graph has several outputs or reads a secondary output of a node, which no network
    that this project prunes does, and ValueError/KeyError where the text is no Symbol JSON at all.
    """
    graph = json.loads(text)
    if len(graph["heads"]) != 1:
        raise UserError(f"the graph has {len(graph['heads'])} outputs; a classification network has one")
    nodes = []
    for raw in graph["nodes"]:
        for i, output, *_ in raw["inputs"]:
            if output != 0:
                raise UserError(
                    f"node '{raw['name']}' reads output {output} of '{graph['nodes'][i]['name']}'; "
                    "only first outputs are supported"
                )
        attrs = raw.get("attrs") or raw.get("attr") or raw.get("param") or {}
        nodes.append(Node(raw["op"], raw["name"], dict(attrs), tuple(i for i, *_ in raw["inputs"])))
    return tuple(nodes), graph["heads"][0][0]


def residual_norms(net: Network) -> Tuple[str, ...]:
    """Names of the batch norms that end a residual branch: an addition reads them directly, and not as its shortcut.

    Of an addition's two inputs the branch is the one with more layers between it and the image. No norm ends the
    branches of version-2 ResNets, so they have none.
    """
    depth = [0] * len(net.nodes)  # layers with weights on the longest way from the image
    found = []
    for i, node in enumerate(net.nodes):
        depth[i] = max((depth[j] for j in node.inputs), default=0) + has_weight(node)
        if node.op in ADD:
            shortcut, branch = sorted(node.inputs, key=lambda j: depth[j])
            if net.nodes[branch].op in NORM and depth[branch] > depth[shortcut]:
                found.append(net.nodes[branch].name)
    return tuple(found)


def with_zero_residuals(net: Network) -> Network:
    """The network with scales of 0 at the end of every residual branch, so that each block starts as its shortcut.

    He et al., "Bag of Tricks", CVPR 2019, section 3.1; GluonCV's `last_gamma`, which leaves out the basic blocks of
    version 1b. UserError where no norm ends a branch.
    """
    scales = [net.norm_arrays(norm)[0] for norm in residual_norms(net)]
    if not scales:
        raise UserError(
            f"network '{net.name}': no residual branch ends in a batch norm; set train.last_gamma_zero to false"
        )
    return net.with_arrays({name: np.zeros_like(net.arrays[name]) for name in scales})


# ---- the walk: channel groups -----------------------------------------------------------------------------------


class _Sets:
    """Union-find over integers made on demand."""

    def __init__(self) -> None:
        self.parent: List[int] = []

    def new(self) -> int:
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def find(self, a: int) -> int:
        while self.parent[a] != a:
            self.parent[a] = self.parent[self.parent[a]]
            a = self.parent[a]
        return a

    def unite(self, a: int, b: int) -> int:
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)
        return min(a, b)


def is_depthwise(net: Network, i: int) -> bool:
    """Whether node i is a conv with one filter per input channel."""
    node = net.nodes[i]
    channels = net.shapes[node.inputs[0]][0]
    return (
        node.op == "Convolution" and int(node.literal("num_group", 1)) == channels == net.shapes[i][0] and channels > 1
    )


def is_mask(net: Network, i: int) -> bool:
    """Whether node i multiplies channels by a mask array of this project."""
    node = net.nodes[i]
    return node.op == "broadcast_mul" and net.nodes[node.inputs[1]].name.endswith(MASK)


def is_layer(net: Network, i: int) -> bool:
    """Whether node i is a conv or dense layer that makes new channels."""
    op = net.nodes[i].op
    return op == "FullyConnected" or (op == "Convolution" and not is_depthwise(net, i))


def layer_name(node: str) -> str:
    """GluonCV's layer name of a node's: Gluon appends `_fwd` to the operator that a layer calls."""
    return node[: -len("_fwd")] if node.endswith("_fwd") else node


def _check(net: Network, i: int) -> None:
    """Refuse, by name, a node that the walk does not know."""
    node = net.nodes[i]

    def unknown(what: str) -> UserError:
        return UserError(
            f"network '{net.name}': {what} at node '{node.name}' is not supported; supported are "
            "convolutions (plain and depthwise), dense layers, batch norm, activations, pooling, "
            "dropout, flatten and element-wise addition"
        )

    if node.op == "Convolution":
        if len(node.literal("kernel", ())) != 2 or node.attrs.get("layout", "NCHW") not in ("NCHW", "None"):
            raise unknown("a convolution that is not 2-D in NCHW layout")
        if int(node.literal("num_group", 1)) != 1 and not is_depthwise(net, i):
            raise unknown(f"operator 'Convolution' with num_group={node.attrs['num_group']} (grouped)")
    elif node.op == "FullyConnected":
        if not node.literal("flatten", True) and len(net.shapes[node.inputs[0]]) > 1:
            raise unknown("operator 'FullyConnected' with flatten=False on an image")
    elif node.op == "Activation":
        if node.attrs.get("act_type") not in ACTIVATIONS:
            raise unknown(f"activation '{node.attrs.get('act_type')}'")
    elif node.op == "LeakyReLU":
        if node.attrs.get("act_type", "leaky") != "leaky":
            raise unknown(f"activation '{node.attrs['act_type']}'")
    elif node.op == "Pooling":
        if node.attrs.get("pool_type", "max") not in ("max", "avg"):
            raise unknown(f"pooling '{node.attrs['pool_type']}'")
    elif node.op == "BatchNorm":
        if node.literal("axis", 1) != 1:
            raise unknown("a batch norm that is not over channels")
    elif node.op in ADD:
        shapes = {net.shapes[j] for j in node.inputs}
        if len(shapes) != 1:
            raise unknown(f"addition of different shapes {sorted(shapes)}")
    elif node.op not in PASS and not is_mask(net, i):
        raise unknown(f"operator '{node.op}'")


def _walk(net: Network) -> Tuple[Tuple[Group, ...], Tuple[Optional[str], ...]]:
    """Groups by union-find over the nodes, and the owner of every node's channels."""
    sets, label = _Sets(), {}
    fixed = sets.new()
    label[net.data] = fixed
    for i, node in enumerate(net.nodes):
        if node.op == "null":
            continue
        _check(net, i)
        if is_layer(net, i):
            label[i] = sets.new()
        elif node.op in ADD:
            label[i] = sets.unite(label[node.inputs[0]], label[node.inputs[1]])
        else:
            label[i] = label[node.inputs[0]]
    sets.unite(fixed, label[net.output])
    for root in _unsilenced(net, {i: sets.find(a) for i, a in label.items()}):
        sets.unite(fixed, root)

    members: Dict[int, Dict[str, list]] = {}
    for i, node in enumerate(net.nodes):
        if node.op == "null":
            continue
        mine, read = sets.find(label[i]), sets.find(label[node.inputs[0]])
        empty = {"producers": [], "consumers": [], "norms": [], "depthwise": [], "size": 0}
        row = members.setdefault(mine, dict(empty, producers=[], consumers=[], norms=[], depthwise=[]))
        if is_layer(net, i):
            row["producers"].append(node.name)
            row["size"] = net.shapes[i][0]
            source = members.setdefault(read, dict(empty, producers=[], consumers=[], norms=[], depthwise=[]))
            source["consumers"].append(node.name)
        elif node.op in NORM or is_mask(net, i):
            row["norms"].append(node.name)
        elif node.op == "Convolution":
            row["depthwise"].append(node.name)

    name_of, groups = {}, []
    for root, row in members.items():
        if root == sets.find(fixed) or not row["producers"]:
            continue
        name = layer_name(row["producers"][0])
        name_of[root] = name
        groups.append(
            Group(name, row["size"], *(tuple(row[k]) for k in ("producers", "consumers", "norms", "depthwise")))
        )
    owner = tuple(name_of.get(sets.find(label[i])) if i in label else None for i in range(len(net.nodes)))
    return tuple(groups), owner


def _unsilenced(net: Network, root: Mapping[int, int]) -> List[int]:
    """Labels whose channels some layer reads ahead of their norms, as the shortcuts of CIFAR's version-2 ResNets do.

    No scale at zero silences such a channel, so these stay whole.
    """
    scaled = {root[i] for i, n in enumerate(net.nodes) if i in root and (n.op in NORM or is_mask(net, i))}
    silenced, found = {net.data: True}, []
    for i, node in enumerate(net.nodes):
        if node.op == "null":
            continue
        if is_layer(net, i) and not silenced[node.inputs[0]]:
            found.append(root[node.inputs[0]])
        if is_layer(net, i):
            silenced[i] = root[i] not in scaled
        elif node.op in ADD:
            silenced[i] = all(silenced[j] for j in node.inputs)
        else:
            silenced[i] = node.op in NORM or is_mask(net, i) or silenced[node.inputs[0]]
    return found


def _streams(net: Network) -> Tuple[Stream, ...]:
    """Streams of all groups: connected runs of activation, pooling and addition nodes."""
    sets = _Sets()
    label: Dict[int, int] = {}
    reach: Dict[int, Tuple[str, ...]] = {}  # per node, the sources that arrive there
    spoilt = []  # streams that a positive scalar does not pass through unchanged
    for i, node in enumerate(net.nodes):
        if node.op == "null":
            if i == net.data:
                label[i], reach[i] = sets.new(), ()
            continue
        if is_layer(net, i) or node.op in NORM or node.op == "Convolution" or is_mask(net, i):
            label[i] = sets.new()
            reach[i] = (node.name,)
        elif node.op in ADD:
            a, b = node.inputs
            label[i] = sets.unite(label[a], label[b])
            reach[i] = tuple(dict.fromkeys(reach[a] + reach[b]))
        else:
            label[i], reach[i] = label[node.inputs[0]], reach[node.inputs[0]]
            if node.op == "clip" or (node.op == "Activation" and node.attrs["act_type"] != "relu"):
                spoilt.append(label[i])
    scaled = {n for g in net.groups for n in g.norms}
    readers: Dict[int, Dict[str, Tuple[str, ...]]] = {}
    spoilt.append(label[net.output])
    for i, node in enumerate(net.nodes):
        if node.op == "Convolution" or node.op == "FullyConnected":
            readers.setdefault(sets.find(label[node.inputs[0]]), {})[node.name] = reach[node.inputs[0]]
        elif node.op in NORM or (node.op != "null" and is_mask(net, i)):
            spoilt.append(label[node.inputs[0]])  # a norm takes any scale out again: nothing to gain upstream
    bad = {sets.find(s) for s in spoilt}
    streams = []
    for root in dict.fromkeys(sets.find(label[i]) for i in label):
        sources = tuple(
            n.name
            for i, n in enumerate(net.nodes)
            if i in label and sets.find(label[i]) == root and reach[i] == (n.name,)
        )
        group = next((net.owner[net.index[s]] for s in sources), None)
        if group is None or root not in readers:
            continue
        streams.append(
            Stream(
                group,
                sources,
                tuple(readers[root]),
                readers[root],
                root not in bad and all(s in scaled for s in sources),
            )
        )
    return tuple(streams)


# ---- functions on networks --------------------------------------------------------------------------------------


def reader_norms(net: Network, stream: Stream, squared: bool = True) -> np.ndarray:
    """Per channel of the stream, the (squared) norm of the weights that read it, over all readers together.

    Shape (group size,), float64. Eq. 2's `||W_l[:, j]||_F`; a dense layer behind a flatten reads each channel
    at several positions, a depthwise conv reads it with one kernel.
    """
    total = None
    for name in stream.readers:
        part = squared_input_norms(net, name)
        total = part if total is None else total + part
    return total if squared else np.sqrt(total)


def squared_input_norms(net: Network, layer: str) -> np.ndarray:
    """Per input channel j of a conv or dense layer, `||W[:, j]||_F^2`. Shape (input channels,), float64."""
    i = net.index[layer]
    squares = np.square(net.arrays[net.weight(layer)], dtype=np.float64)
    if is_depthwise(net, i):
        return squares.reshape(len(squares), -1).sum(1)
    channels = net.shapes[net.nodes[i].inputs[0]][0]
    return _by_input(squares, _n_input(net, i, channels)).sum((0, 2))


def _n_input(net: Network, i: int, channels: int) -> int:
    """Input channels of layer i in the sense of its group: a flattened input counts each channel once."""
    owner = net.owner[net.nodes[i].inputs[0]]
    return net.widths[owner] if owner is not None else channels


def _by_input(weight: np.ndarray, channels: int) -> np.ndarray:
    """A conv or dense weight as (out, input channels, taps per channel)."""
    return weight.reshape(len(weight), channels, -1)


def rescale(net: Network) -> Network:
    """The same function with the readers' weights of every rescalable stream at unit norm (section 4.2).

    ReLU, pooling and addition are positively homogeneous, so `||W[:, j]||` moves into scale and shift of the norms
    that make channel j. A channel that nobody reads keeps its scale. Networks with relu6 or a sigmoid keep
    theirs in the streams concerned.
    """
    arrays = dict(net.arrays)
    for stream in net.streams:
        if not stream.rescalable:
            continue
        s = reader_norms(net, stream, squared=False)
        s = np.where(s > 0, s, 1.0)
        for norm in stream.sources:
            for name in net.norm_arrays(norm):
                if name is not None:
                    arrays[name] = (arrays[name] * s.reshape(arrays[name].shape)).astype(np.float32)
        for layer in stream.readers:
            name = net.weight(layer)
            depthwise = is_depthwise(net, net.index[layer])
            w = _by_input(arrays[name], 1 if depthwise else len(s))
            by = s[:, None, None] if depthwise else s[None, :, None]
            # In float64, rounded once, and without a float64 copy of the weights.
            scaled = np.divide(w, by, out=np.empty_like(w), dtype=np.float64, casting="same_kind")
            arrays[name] = scaled.reshape(arrays[name].shape)
    return net.with_arrays(arrays)


def with_masks(net: Network) -> Network:
    """The same function with a mask of ones behind every producer that no norm follows.

    Gives such groups (VGG's dense layers) the scale that GCP regularises; `fold_masks` takes them out again.
    """
    bare = {p for g in net.groups if not g.norms for p in g.producers}
    nodes, shapes, arrays, moved = [], [], dict(net.arrays), {}
    for i, node in enumerate(net.nodes):
        nodes.append(replace(node, inputs=tuple(moved[j] for j in node.inputs)))
        shapes.append(net.shapes[i])
        moved[i] = len(nodes) - 1
        if node.name in bare:
            name = layer_name(node.name) + MASK
            shape = (1,) + (net.shapes[i][0],) + (1,) * (len(net.shapes[i]) - 1)
            arrays[name] = np.ones(shape, np.float32)
            # MXNet cannot infer this shape from the graph
            nodes += [
                Node("null", name, {"__shape__": str(shape)}),
                Node("broadcast_mul", name + "_fwd", {}, (moved[i], len(nodes))),
            ]
            shapes += [shape, net.shapes[i]]
            moved[i] = len(nodes) - 1
    return replace(net, nodes=tuple(nodes), shapes=tuple(shapes), arrays=arrays, output=moved[net.output])


def fold_masks(net: Network) -> Network:
    """Masks multiplied into the weights and biases before them, and taken out of the graph."""
    arrays, moved, nodes, shapes = dict(net.arrays), {}, [], []
    gone = set()
    for i, node in enumerate(net.nodes):
        if node.op == "broadcast_mul" and is_mask(net, i):
            layer, name = net.nodes[node.inputs[0]].name, net.nodes[node.inputs[1]].name
            m = arrays.pop(name).reshape(-1)
            w = net.weight(layer)
            arrays[w] = arrays[w] * m.reshape((-1,) + (1,) * (arrays[w].ndim - 1))
            if net.bias(layer) is not None:
                arrays[net.bias(layer)] = arrays[net.bias(layer)] * m
            gone |= {i, node.inputs[1]}
    for i, node in enumerate(net.nodes):
        if i in gone:
            moved[i] = moved[node.inputs[0]] if node.inputs else -1
            continue
        nodes.append(replace(node, inputs=tuple(moved[j] for j in node.inputs)))
        shapes.append(net.shapes[i])
        moved[i] = len(nodes) - 1
    return replace(net, nodes=tuple(nodes), shapes=tuple(shapes), arrays=arrays, output=moved[net.output])


def mask(net: Network, keep: Mapping[str, Sequence[int]]) -> Network:
    """The network with the scale of every dropped channel at zero: same shapes, dropped channels constant.

    Channels behind a norm then put out their shift; channels without one have zero weights and put out their
    bias. `shrink` gives the same function with the channels gone.
    """
    arrays = {}
    for g in net.groups:
        dropped = np.setdiff1d(np.arange(g.size), keep[g.name])
        names = [net.norm_arrays(n)[0] for n in g.norms] or [net.weight(p) for p in g.producers]
        for name in names:
            value = np.array(net.arrays[name])
            if name.endswith(MASK):
                value.reshape(-1)[dropped] = 0.0  # value owns its memory, so the reshape is a view
            else:
                value[dropped] = 0.0
            arrays[name] = value
    return net.with_arrays(arrays)


def shrink(net: Network, keep: Mapping[str, Sequence[int]]) -> Network:
    """The network without the dropped channels.

    `keep` maps each group's name to the sorted indices that stay, at least one. What a dropped channel still
    put out (see `mask`) is a constant; it moves into the next batch norm's running mean, or the bias of the layer
    that reads it (a bias is added where there is neither). Equal to `mask(net, keep)` up to rounding, except within
    a kernel's reach of zero-padded borders, where the constant met zeros.
    """
    for g in net.groups:
        if len(keep[g.name]) == 0:
            raise ValueError(f"group '{g.name}' would be emptied")
    net = _with_biases(net)
    arrays = _absorb_constants(mask(net, keep), keep)
    nodes, shapes = [], []
    sliced = {}
    for i, node in enumerate(net.nodes):
        group, shape = net.owner[i], net.shapes[i]
        if group is not None:
            size, n = net.widths[group], len(keep[group])
            shape = (shape[0] // size * n,) + tuple(shape[1:])
            if node.op == "Convolution":
                attrs = {**node.attrs, "num_filter": str(n)}
                if is_depthwise(net, i):
                    attrs["num_group"] = str(n)
                node = replace(node, attrs=attrs)
            elif node.op == "FullyConnected":
                node = replace(node, attrs={**node.attrs, "num_hidden": str(n)})
        nodes.append(node)
        shapes.append(shape)
        if node.op == "null":
            continue
        rows = keep[group] if group is not None else slice(None)
        if node.op in NORM or is_mask(net, i):
            for j in node.inputs[1:]:
                name = net.nodes[j].name
                axis = 1 if name.endswith(MASK) else 0
                sliced[name] = arrays[name] if group is None else np.take(arrays[name], rows, axis)
        elif node.op in ("Convolution", "FullyConnected"):
            w = arrays[net.weight(node.name)]
            read = net.owner[node.inputs[0]]
            if read is not None and is_layer(net, i):
                taps = _by_input(w, net.widths[read])[:, keep[read]]
                w = taps.reshape((len(w), -1) + w.shape[2:])
            sliced[net.weight(node.name)] = w[rows]
            if net.bias(node.name) is not None:
                sliced[net.bias(node.name)] = arrays[net.bias(node.name)][rows]
    for i, node in enumerate(nodes):
        if node.op == "null" and node.name in sliced:
            shapes[i] = sliced[node.name].shape
            if "__shape__" in node.attrs:
                nodes[i] = replace(node, attrs={**node.attrs, "__shape__": str(shapes[i])})
    arrays = {k: np.ascontiguousarray(sliced.get(k, v), dtype=np.float32) for k, v in arrays.items()}
    return replace(net, nodes=tuple(nodes), shapes=tuple(shapes), arrays=arrays)


def resized(net: Network, widths: Mapping[str, int]) -> Network:
    """The same architecture at other widths, smaller or larger, with made-up weights: for costs and for timing.

    `widths`: group name -> number of channels, 1 or more, for every group. Weights repeat one block of random numbers
    at He's scale, so that a ResNet-101 takes a tenth of a second; a network's time does not depend on them.
    """
    pattern = np.random.default_rng(0).normal(size=4093).astype(np.float32)  # a prime: rows do not repeat each other
    nodes, shapes, arrays = list(net.nodes), list(net.shapes), {}

    def scaled(channels: int, group: Optional[str]) -> int:
        return channels if group is None else channels // net.widths[group] * widths[group]

    def put(j: int, value: np.ndarray) -> None:
        arrays[net.nodes[j].name], shapes[j] = value, value.shape
        if "__shape__" in net.nodes[j].attrs:
            nodes[j] = replace(net.nodes[j], attrs={**net.nodes[j].attrs, "__shape__": str(value.shape)})

    for i, node in enumerate(net.nodes):
        if node.op == "null":
            continue
        group = net.owner[i]
        shapes[i] = (scaled(net.shapes[i][0], group),) + tuple(net.shapes[i][1:])
        if has_weight(node):
            n, shape = shapes[i][0], net.shapes[node.inputs[1]]
            read = None if is_depthwise(net, i) else net.owner[node.inputs[0]]
            shape = (n, scaled(shape[1], read)) + tuple(shape[2:])
            key = "num_filter" if node.op == "Convolution" else "num_hidden"
            attrs = {**node.attrs, key: str(n)}
            if is_depthwise(net, i):
                attrs["num_group"] = str(n)
            nodes[i] = replace(node, attrs=attrs)
            gain = np.sqrt(2 / np.prod(shape[1:]))
            put(node.inputs[1], np.resize(pattern * gain, shape).astype(np.float32))
            for j in node.inputs[2:]:
                put(j, np.zeros(n, np.float32))
        elif node.op in NORM:
            for j, value in zip(node.inputs[1:], (1.0, 0.0, 0.0, 1.0)):  # scale, shift, mean, variance
                put(j, np.full(shapes[i][0], value, np.float32))
        elif is_mask(net, i):
            j = node.inputs[1]
            put(j, np.ones((1, shapes[i][0]) + tuple(net.shapes[j][2:]), np.float32))
    return replace(net, nodes=tuple(nodes), shapes=tuple(shapes), arrays=arrays)


def _with_biases(net: Network) -> Network:
    """A zero bias for each layer whose missing constant would meet an activation or the output unabsorbed."""
    exposed = {net.output: True}  # per node: does a constant added to its output reach a non-linear operator?
    readers: Dict[int, List[int]] = {}
    for i, node in enumerate(net.nodes):
        for j in node.inputs:
            readers.setdefault(j, []).append(i)
    for i in range(len(net.nodes) - 1, -1, -1):
        if i in exposed or net.nodes[i].op == "null":
            continue
        exposed[i] = any(
            net.nodes[r].op in ("Activation", "relu", "LeakyReLU", "clip")
            or (net.nodes[r].op not in NORM and not is_layer(net, r) and exposed[r])
            for r in readers.get(i, ())
        )
    bare = [
        i
        for i, n in enumerate(net.nodes)
        if has_weight(n) and net.bias(n.name) is None and exposed[i] and net.owner[n.inputs[0]] is not None
    ]
    if not bare:
        return net
    nodes, shapes, arrays, moved = [], [], dict(net.arrays), {}
    for i, node in enumerate(net.nodes):
        inputs = tuple(moved[j] for j in node.inputs)
        if i in bare:
            name = layer_name(node.name) + "_bias"
            arrays[name] = np.zeros(net.shapes[i][0], np.float32)
            nodes.append(Node("null", name, {}))
            shapes.append((net.shapes[i][0],))
            node = replace(node, attrs={**node.attrs, "no_bias": "False"})
            inputs += (len(nodes) - 1,)
        nodes.append(replace(node, inputs=inputs))
        shapes.append(net.shapes[i])
        moved[i] = len(nodes) - 1
    return replace(net, nodes=tuple(nodes), shapes=tuple(shapes), arrays=arrays, output=moved[net.output])


def has_weight(node: Node) -> bool:
    """Whether the node has a weight."""
    return node.op in ("Convolution", "FullyConnected")


def _absorb_constants(net: Network, keep: Mapping[str, Sequence[int]]) -> Dict[str, np.ndarray]:
    """Arrays of a masked network in which the constants of the dropped channels have moved on.

    One pass in topological order. `constant[i]`: what each dropped channel of node i puts out (NaN while a conv's
    output still varies, before its norm). `missing[i]`: what the kept channels of node i lack once the dropped
    channels upstream are gone. Float64 throughout.
    """
    arrays = dict(net.arrays)
    dropped = {g.name: np.setdiff1d(np.arange(g.size), keep[g.name]) for g in net.groups}
    has_norm = {g.name: bool(g.norms) for g in net.groups}
    constant: Dict[int, np.ndarray] = {net.data: np.zeros(net.input_shape[0])}
    missing: Dict[int, np.ndarray] = {net.data: np.zeros(net.input_shape[0])}
    for i, node in enumerate(net.nodes):
        if node.op == "null":
            continue
        source, group = node.inputs[0], net.owner[i]
        c, d = constant[source], missing[source]
        if has_weight(node):
            w = arrays[net.weight(node.name)].astype(np.float64)
            bias = net.bias(node.name)
            if is_depthwise(net, i):
                c, lost = c * w.sum((1, 2, 3)), d * w.sum((1, 2, 3))
            else:
                read = net.owner[source]
                taps = _by_input(w, len(c)).sum(2)
                lost = taps @ d
                if read is not None and len(dropped[read]):
                    lost = lost + taps[:, dropped[read]] @ c[dropped[read]]
                c = np.full(len(w), np.nan if group is not None and has_norm[group] else 0.0)
            if bias is not None:
                c = c + arrays[bias]
                arrays[bias] = (arrays[bias] + lost).astype(np.float32)
                lost = np.zeros_like(lost)
            d = lost
        elif node.op in NORM:
            beta, mean = net.nodes[node.inputs[2]].name, net.nodes[node.inputs[3]].name
            arrays[mean] = (arrays[mean] - d).astype(np.float32)
            c, d = arrays[beta].astype(np.float64), np.zeros_like(d)
        elif is_mask(net, i):
            m = arrays[net.nodes[node.inputs[1]].name].reshape(-1)
            c, d = np.where(m == 0, 0.0, c * m), d * m
        elif node.op in ADD:
            c, d = c + constant[node.inputs[1]], d + missing[node.inputs[1]]
        elif node.op == "Activation":
            c = ACTIVATIONS[node.attrs["act_type"]](c)
        elif node.op == "relu":
            c = np.maximum(c, 0.0)
        elif node.op == "LeakyReLU":
            c = np.where(c > 0, c, c * float(node.attrs.get("slope", 0.25)))
        elif node.op == "clip":
            c = np.clip(c, float(node.attrs["a_min"]), float(node.attrs["a_max"]))
        constant[i], missing[i] = c, d
    return arrays


FROZEN = "__lr_mult__"  # MXNet's own attribute; 0.0 on variables that no optimiser may touch


def auxiliary(net: Network) -> set:
    """Names of the arrays that MXNet calls auxiliary: running means and variances."""
    return {net.nodes[j].name for n in net.nodes if n.op in NORM for j in n.inputs[3:]}


def scale_arrays(net: Network) -> Set[str]:
    """Names of all scales, shifts and masks, and of the output layer: the variables of eqs. 6 and 7."""
    aux = auxiliary(net)
    names = {net.nodes[j].name for n in net.nodes if n.op in NORM for j in n.inputs[1:3]}
    names |= {net.norm_arrays(n)[0] for g in net.groups for n in g.norms}
    last = max(i for i, n in enumerate(net.nodes) if has_weight(n))
    layer = net.nodes[last].name
    names |= {net.weight(layer)} | ({net.bias(layer)} if net.bias(layer) is not None else set())
    return names - aux
