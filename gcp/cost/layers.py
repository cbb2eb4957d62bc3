"""The layers that make up a network's latency: each conv or dense layer with what follows it, up to the next one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from gcp.graph.channels import has_weight, layer_name
from gcp.graph.network import Network, Node
from gcp.graph.operators import Convolution


class Channels(NamedTuple):
    """A number of channels: `fixed` ones, plus `per_unit[group]` for every unit of each group."""

    fixed: int
    per_unit: Mapping[str, int]

    def __call__(self, widths: Mapping[str, int]) -> int:
        """The number of channels at these widths."""
        return self.fixed + sum(n * widths[group] for group, n in self.per_unit.items())


@dataclass(frozen=True)
class Layer:
    """A conv or dense layer with its followers (norm, activation, pooling, addition), which are timed with it.

    `kind` is equal for layers that take the same time at the same widths: operator, kernel, stride, sizes, followers.
    Multiply-accumulates are `kernel_size * positions * input channels * output channels`, with the channels counted
    once for a `depthwise` conv or a grouped one that loses whole groups. `in_positions` and `out_positions`: values per
    channel of the input (where channels count once, per channel of the output), and of the output together with all
    followers' outputs. `conv_groups`: the conv groups of the layer at the network's own widths.
    """

    name: str
    kind: str
    operator: str
    inputs: Channels
    outputs: Channels
    kernel_size: float
    positions: int
    in_positions: float
    out_positions: int
    depthwise: bool
    conv_groups: int = 1

    @property
    def groups(self) -> Tuple[str, ...]:
        """The groups whose widths its latency depends on."""
        return tuple({**self.inputs.per_unit, **self.outputs.per_unit})

    def widths(self, widths: Mapping[str, int]) -> Tuple[int, int]:
        """(input channels, output channels); a depthwise conv has one width, which is used for both."""
        n_out = self.outputs(widths)
        return (n_out if self.depthwise else self.inputs(widths)), n_out

    def read_by_each(self, n_in: int) -> int:
        """The input channels that each output reads; where channels count once, cuts leave their number as it is."""
        return max(1, (self.inputs.fixed if self.depthwise else n_in) // self.conv_groups)


class Share(NamedTuple):
    """The cost of some layers, as fractions of the whole network's multiply-accumulates and latency."""

    macs: float
    latency: float


def layers(net: Network) -> Tuple[Layer, ...]:
    """The layers of a network in the order of its graph."""
    base: Dict[int, Optional[int]] = {}  # per node, the layer that it belongs to
    followers: Dict[int, List[int]] = {}
    for i, node in enumerate(net.nodes):
        if has_weight(node):
            base[i], followers[i] = i, []
        elif node.inputs:
            base[i] = base.get(node.inputs[0][0])
            if base[i] is not None:
                followers[base[i]].append(i)
    return tuple(_layer(net, i, rest) for i, rest in followers.items())


def _layer(net: Network, i: int, followers: Sequence[int]) -> Layer:
    call, widths = net.structure.calls[i], net.widths
    node, source, shape = call.node, call.shapes[0], call.out_shapes[0]
    weight = call.shapes[call.operator.weight]
    kernel = "x".join(map(str, weight[2:]))
    made, read = ({None: n} for n in (shape[1], source[1]))
    if call.outs[0] is not None:
        made = net.structure.form(call.outs[0].labels)
    if call.read is not None:
        read = net.structure.form(call.read)
    if not kernel and None not in read:  # a flatten may have come between
        each = math.gcd(*read.values())
        read = {group: n // each for group, n in read.items()}
    inputs, outputs = (Channels(form.pop(None, 0), form) for form in (read, made))
    ties = call.operator.ties(call) if isinstance(call.operator, Convolution) else "none"
    one_width = ties in ("depthwise", "groups")
    n_in, n_out = source[1] if one_width else inputs(widths), outputs(widths)
    what = "deconv" if node.op == "Deconvolution" else "conv"
    name = {"none": f"{what} ", "depthwise": "depthwise deconv " if what == "deconv" else "depthwise "}
    operator = name.get(ties, f"grouped {what} ") + kernel if kernel else "dense"
    stride = node.literal("stride", (1, 1)) if kernel else ()
    kind = [operator]
    if stride and max(stride) > 1:
        kind.append("stride " + "x".join(map(str, stride)))
    if kernel:
        kind.append(f"{'x'.join(map(str, source[2:]))}>{'x'.join(map(str, shape[2:]))}")
    if call.bias is not None:
        kind.append("bias")
    if followers:
        kind.append("+ " + ", ".join(_follower(net, j) for j in followers))
    return Layer(
        name=layer_name(node.name),
        kind=" ".join(kind),
        operator=operator,
        inputs=Channels(n_in, {}) if one_width else inputs,
        outputs=outputs,
        kernel_size=math.prod(weight) / (n_out if one_width else n_in * n_out),
        positions=call.operator.positions(call),
        in_positions=math.prod(source) / (n_out if one_width else n_in),
        out_positions=sum(_positions(net, j) for j in (i, *followers)),
        depthwise=one_width,
        conv_groups=int(node.literal("num_group", 1)) if kernel else 1,
    )


def _positions(net: Network, j: int) -> int:
    """Values per channel of a node's output, whose channels are along axis 1, or along the last as in a dense layer."""
    shape, call = net.shapes[j][0], net.structure.calls.get(j)
    out = None if call is None else call.outs[0]
    return math.prod(shape[1:-1] if out is not None and out.axis == len(shape) - 1 else shape[2:])


def _follower(net: Network, j: int) -> str:
    node = net.nodes[j]
    detail = node.attrs.get("act_type") or node.attrs.get("pool_type") or ""
    if node.op == "Pooling":
        detail += " to " + "x".join(map(str, net.shapes[j][0][2:]))
    return f"{node.op} {detail}".strip()


def alone(net: Network, layer: Layer) -> Network:
    """A network of this layer and its followers only, for timing it by itself. An addition adds its input to itself."""
    i = next(j for j, n in enumerate(net.nodes) if layer_name(n.name) == layer.name and has_weight(n))
    source, shape = net.nodes[i].inputs[0], net.structure.calls[i].shapes[0]
    nodes, shapes, arrays = [Node("null", "data", {})], [(shape,)], {}
    moved = {source: (0, 0)}
    for j in range(i, len(net.nodes)):
        node = net.nodes[j]
        if j != i and (node.op == "null" or has_weight(node) or node.inputs[0] not in moved):
            continue
        own = node.inputs[0]
        others = [t for t in node.inputs if t not in moved and not net.is_array(t[0])]
        if any(net.shapes[a][b] != net.shapes[own[0]][own[1]] for a, b in others) or j != i and own == source:
            continue  # for example a concatenation, which needs more than this layer's output
        for t in node.inputs:
            if net.is_array(t[0]) and t not in moved:
                moved[t] = (len(nodes), 0)
                nodes.append(net.nodes[t[0]])
                shapes.append(net.shapes[t[0]])
                arrays[net.nodes[t[0]].name] = net.arrays[net.nodes[t[0]].name]
        nodes.append(replace(node, inputs=tuple(moved.get(t, moved[own]) for t in node.inputs)))
        shapes.append(net.shapes[j])
        moved.update({(j, o): (len(nodes) - 1, o) for o in range(len(net.shapes[j]))})
    # Only the last node is the output: other branches of the followers (a relu with two readers) lead to it or are few.
    return Network(f"{net.name} {layer.name}", tuple(nodes), ((len(nodes) - 1, 0),), tuple(shapes), arrays)
