"""A network as graph + arrays: numpy only; `gcp.backend` is the bridge to MXNet.

A `Network` holds the Symbol JSON graph of a network, the shapes of all tensors and a dict of numpy arrays.
`gcp.graph.channels` determines which channels can be removed, `gcp.graph.surgery` changes them, and
`gcp.graph.operators` defines what each operator means for both, so that both work on every network and cannot disagree.

The terms are those of Khetan & Karnin, "PruneNet: Channel Pruning via Global Importance", arXiv 2005.11282, section 4.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np

from gcp.errors import UserError
from gcp.graph.channels import FROZEN, Group, Streams, Structure, Tensor, has_weight
from gcp.graph.operators import operator

Widths = Dict[str, int]
Keep = Dict[str, np.ndarray]
Shape = Tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One node of the Symbol graph; `inputs` are (node, output) pairs, in MXNet's order."""

    op: str
    name: str
    attrs: Mapping[str, str]
    inputs: Tuple[Tensor, ...] = ()

    def literal(self, key: str, default=None):
        """The attribute as a Python number, tuple or bool; `default` (MXNet's own) where the graph omits it."""
        text = self.attrs.get(key)
        return default if text is None else _literal(text)


@lru_cache(maxsize=4096)  # the nodes of a network share a few texts, which are requested again and again
def _literal(text: str):
    """The Python value of a literal; the text itself where it is not a literal."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@dataclass(frozen=True, eq=False)
class Network:
    """Graph + arrays. `shapes[i][o]` is the shape of output o of node i for a batch of one image.

    `arrays` maps variable names to numpy arrays (float32); `outputs` are (node, output) pairs; `name` is that of the
    GluonCV network that this one was derived from.
    """

    name: str
    nodes: Tuple[Node, ...]
    outputs: Tuple[Tensor, ...]
    shapes: Tuple[Tuple[Shape, ...], ...]
    arrays: Mapping[str, np.ndarray]

    @property
    def input_shape(self) -> Shape:
        """(channels, height, width) of one image."""
        return self.shapes[self.data][0][1:]

    @property
    def n_classes(self) -> int:
        """Length of the (first) output vector."""
        i, o = self.outputs[0]
        return self.shapes[i][o][1] if len(self.shapes[i][o]) > 1 else 1

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
    def readers(self) -> Mapping[Tensor, List[int]]:
        """Tensor -> positions of the nodes that read it."""
        found: Dict[Tensor, List[int]] = {(i, o): [] for i, s in enumerate(self.shapes) for o in range(len(s))}
        for i, node in enumerate(self.nodes):
            for t in node.inputs:
                found[t].append(i)
        return found

    @cached_property
    def structure(self) -> Structure:
        """Groups and units of channels."""
        return Structure(self)

    @cached_property
    def streams(self) -> Streams:
        """Where positive factors can move (see `Streams`)."""
        return Streams(self.structure)

    @property
    def groups(self) -> Tuple[Group, ...]:
        """The prunable channel groups, in the order of their first producers."""
        return self.structure.groups

    @property
    def widths(self) -> Widths:
        """Group name -> number of units."""
        return {g.name: g.size for g in self.groups}

    def is_array(self, i: int) -> bool:
        """Whether node i is a variable that has an array."""
        return self.nodes[i].op == "null" and self.nodes[i].name in self.arrays

    def unused(self, name: str) -> str:
        """The name, with underscores appended until no node has it."""
        while name in self.index:
            name += "_"
        return name

    def _input(self, layer: str, k: int) -> str:
        return self.nodes[self.nodes[self.index[layer]].inputs[k][0]].name

    def weight(self, layer: str) -> str:
        """Name of the weight array of a conv or dense node."""
        return self._input(layer, operator(self.nodes[self.index[layer]].op).weight)

    def bias(self, layer: str) -> Optional[str]:
        """Name of the bias array of a conv or dense node, None if it has no bias."""
        node = self.nodes[self.index[layer]]
        k = operator(node.op).weight + 1
        return self._input(layer, k) if len(node.inputs) > k else None

    def norm_arrays(self, norm: str) -> Tuple[str, Optional[str]]:
        """Names of the scale and shift arrays of a batch norm; for a gate, a scale alone, the second is None."""
        is_norm = operator(self.nodes[self.index[norm]].op).is_norm
        return self._input(norm, 1), self._input(norm, 2) if is_norm else None

    def by_unit(self, numbers: Mapping[str, np.ndarray], made: bool = True) -> Dict[str, np.ndarray]:
        """Values of layers' output channels, of their inputs, or of entries of scales, summed per unit of each group.

        `numbers`: node name -> array with one value per output channel (per input unless `made`) or per entry. Returns
        group name -> float64 array, shape (units,).
        """
        total = np.zeros(len(self.structure.group_of))
        for name, values in numbers.items():
            i = self.index[name]
            call = self.structure.calls[i]
            units = (call.made if made else call.read) if has_weight(call.node) else self.structure.units_of(i)
            np.add.at(total, units[units >= 0], np.asarray(values, np.float64).reshape(-1)[units >= 0])
        return {g.name: total[g.start : g.start + g.size] for g in self.groups}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> "Network":
        """The same graph with some arrays replaced by others of the same shapes. ValueError: another shape."""
        for name, value in arrays.items():
            if self.arrays[name].shape != value.shape:
                raise ValueError(f"array '{name}': shape {value.shape}, expected {self.arrays[name].shape}")
        net = replace(self, arrays={**self.arrays, **arrays})
        shared = ("data", "index", "readers", "structure", "streams")  # none of these depends on the arrays' values
        net.__dict__.update({key: self.__dict__[key] for key in shared if key in self.__dict__})
        return net

    def to_json(self, indent: Optional[int] = None) -> str:
        """MXNet's Symbol JSON of the graph; with `indent`, on many lines, which takes Python ten times as long."""
        nodes = [
            {
                "op": n.op,
                "name": n.name,
                "inputs": [[i, o, 0] for i, o in n.inputs],
                **({"attrs": dict(n.attrs)} if n.attrs else {}),
            }
            for n in self.nodes
        ]
        variables = [i for i, n in enumerate(self.nodes) if n.op == "null"]
        return json.dumps(
            {
                "nodes": nodes,
                "arg_nodes": variables,
                "heads": [[i, o, 0] for i, o in self.outputs],
                "attrs": {"mxnet_version": ["int", 10901]},
            },
            indent=indent,
        )


def parse_nodes(text: str) -> Tuple[Tuple[Node, ...], Tuple[Tensor, ...]]:
    """Nodes and outputs of a Symbol JSON text; where several nodes share a name, the later ones get a number appended.

    Raises ValueError, KeyError, TypeError or IndexError if the text is not Symbol JSON at all, or an input or an output
    is none of an earlier node. How many outputs a node has, only MXNet knows.
    """
    graph = json.loads(text)
    nodes, taken = [], {raw["name"] for raw in graph["nodes"]}
    seen: Set[str] = set()
    for raw in graph["nodes"]:
        attrs = raw.get("attrs") or raw.get("attr") or raw.get("param") or {}
        name, k = raw["name"], 1
        while name in seen:
            name, k = f"{raw['name']}_{k}", k + 1
            name = name if name not in taken else raw["name"]
        seen.add(name)
        nodes.append(Node(raw["op"], name, dict(attrs), _tensors(raw["inputs"], len(nodes), f"node '{name}'")))
    if not nodes or not graph["heads"]:
        raise ValueError("no nodes")
    return tuple(nodes), _tensors(graph["heads"], len(nodes), "the network's output")


def _tensors(entries: Sequence[Sequence[int]], n_nodes: int, reader: str) -> Tuple[Tensor, ...]:
    """The (node, output) pairs of JSON entries. Raises ValueError if one is not of the first `n_nodes` nodes."""
    for i, o, *_ in entries:
        if type(i) is not int or type(o) is not int or not 0 <= i < n_nodes or o < 0:
            raise ValueError(f"{reader} reads output {o!r:.20} of node {i!r:.20}, which no earlier node has")
    return tuple((i, o) for i, o, *_ in entries)


def residual_branches(net: Network) -> List[Tuple[Tensor, Tensor]]:
    """For every addition of two tensors of unequal depth, the end of its residual branch, and its shortcut.

    The branch is the tensor with more layers between it and the image.
    """
    depth = [0] * len(net.nodes)  # layers with weights on the longest path from the image
    found = []
    for i, node in enumerate(net.nodes):
        depth[i] = max((depth[j] for j, _ in node.inputs), default=0) + has_weight(node)
        if operator(node.op).is_addition and len(node.inputs) == 2:
            shortcut, branch = sorted(node.inputs, key=lambda tensor: depth[tensor[0]])
            if depth[branch[0]] > depth[shortcut[0]]:
                found.append((branch, shortcut))
    return found


def residual_norms(net: Network) -> Tuple[str, ...]:
    """Names of the batch norms that end a residual branch: an addition reads them directly, and not as its shortcut.

    The branches of version-2 ResNets do not end in a norm, so none is found there.
    """
    ends = [net.nodes[i] for (i, _), _ in residual_branches(net)]
    return tuple(node.name for node in ends if operator(node.op).is_norm)


def auxiliary(net: Network) -> Set[str]:
    """Names of the arrays that MXNet calls auxiliary: running means and variances."""
    return {net.nodes[j].name for n in net.nodes if operator(n.op).is_norm for j, _ in n.inputs[3:]}


def frozen(net: Network) -> Set[str]:
    """Names of the arrays that no optimiser may change, not counting the auxiliary ones."""
    return {n.name for n in net.nodes if n.attrs.get(FROZEN) == "0.0"}


def output_layers(net: Network) -> List[str]:
    """Names of the layers whose outputs reach the network's outputs with no other layer in between."""
    found, seen, todo = [], set(), [i for i, _ in net.outputs]
    while todo:
        i = todo.pop()
        if i in seen:
            continue
        seen.add(i)
        if has_weight(net.nodes[i]):
            found.append(net.nodes[i].name)
        else:
            todo += [j for j, _ in net.nodes[i].inputs]
    return found


def scale_arrays(net: Network) -> Set[str]:
    """Names of all scales, shifts and gates, and of the output layers' arrays: the variables of eqs. 6 and 7."""
    names = {net.nodes[j].name for n in net.nodes if operator(n.op).is_norm for j, _ in n.inputs[1:3]}
    names |= {net.norm_arrays(n)[0] for g in net.groups for n in g.norms}
    for layer in output_layers(net):
        names |= {net.weight(layer)} | ({net.bias(layer)} if net.bias(layer) is not None else set())
    return names - auxiliary(net)
