"""The layers that a network's latency is made of: each conv or dense layer with all that follows it up to the next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from gcp.graph.network import Network, Node, has_weight, is_depthwise, layer_name


class Channels(NamedTuple):
    """A number of channels: `fixed`, and for every unit of each group in `per_unit` so many more."""

    fixed: int
    per_unit: Mapping[str, int]

    def __call__(self, widths: Mapping[str, int]) -> int:
        """The number at these widths."""
        return self.fixed + sum(n * widths[group] for group, n in self.per_unit.items())


@dataclass(frozen=True)
class Layer:
    """A conv or dense layer with its followers (norm, activation, pooling, addition), which are timed with it.

    `kind` is equal for layers that take the same time at the same widths: operator, kernel, stride, sizes, followers.
    Multiply-accumulates are `kernel_size * positions * input channels * output channels` (once the channels for a
    depthwise conv). `in_positions` and `out_positions`: values per channel of the input, and of the output with all
    followers' outputs.
    """

    name: str
    kind: str
    operator: str
    inputs: Channels
    outputs: Channels
    kernel_size: int
    positions: int
    in_positions: int
    out_positions: int
    depthwise: bool

    @property
    def groups(self) -> Tuple[str, ...]:
        """The groups whose widths its latency depends on."""
        return tuple({**self.inputs.per_unit, **self.outputs.per_unit})

    def widths(self, widths: Mapping[str, int]) -> Tuple[int, int]:
        """(input channels, output channels); a depthwise conv has one width, which is both."""
        n_out = self.outputs(widths)
        return (n_out if self.depthwise else self.inputs(widths)), n_out


def layers(net: Network) -> Tuple[Layer, ...]:
    """The layers of a network in the order of its graph."""
    base: Dict[int, Optional[int]] = {}  # per node, the layer that it belongs to
    followers: Dict[int, List[int]] = {}
    for i, node in enumerate(net.nodes):
        if node.op == "null":
            base[i] = None
        elif has_weight(node):
            base[i], followers[i] = i, []
        else:
            base[i] = base[node.inputs[0]]
            if base[i] is not None:
                followers[base[i]].append(i)
    return tuple(_layer(net, i, rest) for i, rest in followers.items())


def _layer(net: Network, i: int, followers: Sequence[int]) -> Layer:
    node, source = net.nodes[i], net.nodes[i].inputs[0]
    shape, weight, depthwise = net.shapes[i], net.shapes[node.inputs[1]], is_depthwise(net, i)
    in_group, out_group = net.owner[source], net.owner[i]
    channels = weight[0] if depthwise else net.shapes[source][0]
    n_in = channels if in_group is None else net.widths[in_group]  # a flatten may have come between
    kernel = "x".join(map(str, weight[2:])) if node.op == "Convolution" else ""
    operator = ("depthwise " if depthwise else "conv " if kernel else "dense") + kernel
    stride = node.literal("stride", (1, 1)) if kernel else ()
    positions = int(np.prod(shape[1:], dtype=np.int64))
    kind = [operator]
    if stride and max(stride) > 1:
        kind.append("stride " + "x".join(map(str, stride)))
    if kernel:
        kind.append(f"{'x'.join(map(str, net.shapes[source][1:]))}>{'x'.join(map(str, shape[1:]))}")
    if net.bias(node.name) is not None:
        kind.append("bias")
    if followers:
        kind.append("+ " + ", ".join(_follower(net, j) for j in followers))
    return Layer(
        name=layer_name(node.name),
        kind=" ".join(kind),
        operator=operator,
        inputs=Channels(n_in, {}) if depthwise or in_group is None else Channels(0, {in_group: 1}),
        outputs=Channels(shape[0], {}) if out_group is None else Channels(0, {out_group: 1}),
        kernel_size=int(np.prod(weight[1:], dtype=np.int64)) // (1 if depthwise else n_in),
        positions=positions,
        in_positions=int(np.prod(net.shapes[source], dtype=np.int64)) // n_in,
        out_positions=positions + sum(int(np.prod(net.shapes[j][1:], dtype=np.int64)) for j in followers),
        depthwise=depthwise,
    )


def _follower(net: Network, j: int) -> str:
    node = net.nodes[j]
    detail = node.attrs.get("act_type") or node.attrs.get("pool_type") or ""
    if node.op == "Pooling":
        detail += " to " + "x".join(map(str, net.shapes[j][1:]))
    return f"{node.op} {detail}".strip()


def alone(net: Network, layer: Layer) -> Network:
    """A network of this layer and its followers only, for timing it by itself. An addition adds its value to itself."""
    i = next(j for j, n in enumerate(net.nodes) if layer_name(n.name) == layer.name and has_weight(n))
    source = net.nodes[i].inputs[0]
    nodes, shapes, arrays = [Node("null", "data", {})], [net.shapes[source]], {}
    moved = {source: 0}
    mine = {i}
    for j in range(i, len(net.nodes)):
        node = net.nodes[j]
        if j != i and (node.op == "null" or has_weight(node) or node.inputs[0] not in mine):
            continue
        mine.add(j)
        for k in node.inputs:
            if net.nodes[k].name in net.arrays and k not in moved:
                moved[k] = len(nodes)
                nodes.append(net.nodes[k])
                shapes.append(net.shapes[k])
                arrays[net.nodes[k].name] = net.arrays[net.nodes[k].name]
        inputs = tuple(moved.get(k, moved[node.inputs[0]]) for k in node.inputs)
        moved[j] = len(nodes)
        nodes.append(replace(node, inputs=inputs))
        shapes.append(net.shapes[j])
    # Followers that branch (a relu read by two) all run: the last node is the output, the others lead to it or are few.
    return Network(f"{net.name} {layer.name}", tuple(nodes), len(nodes) - 1, tuple(shapes), arrays)
