"""Rewrites of a network's blocks: fused expansions, full instead of depthwise convolutions, fewer blocks.

Each rewrite returns a network with initial weights, taken as far as possible from the blocks that it replaces.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Set, Tuple

import numpy as np

from gcp.errors import UserError
from gcp.graph.channels import Tensor, has_weight, is_depthwise, is_norm, layer_name
from gcp.graph.network import Network, Node, residual_branches
from gcp.graph.operators import operator
from gcp.graph.surgery import rewrite


class Expansion(NamedTuple):
    """The first part of an inverted bottleneck: a widening 1x1 convolution and the depthwise one that reads it.

    All fields are node positions; `norm` is the batch norm between the two, None if there is none.
    """

    expand: int
    norm: Optional[int]
    depthwise: int


def expansions(net: Network) -> Dict[str, Expansion]:
    """The expansions of inverted bottlenecks (as in MobileNetV2), by the name of their depthwise convolution.

    Each of these is the only reader of a 1x1 convolution, with at most one norm and activations in between.
    """
    found = {}
    for i, node in enumerate(net.nodes):
        if node.op != "Convolution" or not is_depthwise(net, i):
            continue
        (at, o), norm = node.inputs[0], None
        while o == 0 and len(net.readers[at, 0]) == 1 and _is_between(net, at, norm):
            norm = at if is_norm(net, at) else norm
            at, o = net.nodes[at].inputs[0]
        if o == 0 and _is_pointwise(net, at) and len(net.readers[at, 0]) == 1:
            found[node.name] = Expansion(at, norm, i)
    return found


def _is_between(net: Network, i: int, norm: Optional[int]) -> bool:
    kind = operator(net.nodes[i].op)
    return (
        bool(net.nodes[i].inputs)
        and not has_weight(net.nodes[i])
        and ((kind.is_norm and norm is None) or (kind.in_place and len(net.nodes[i].inputs) == 1))
    )


def _is_pointwise(net: Network, i: int) -> bool:
    """Whether node i is an ordinary 1x1 convolution of stride 1."""
    node = net.nodes[i]
    return (
        node.op == "Convolution"
        and tuple(node.literal("kernel")) == (1, 1)
        and tuple(node.literal("stride", (1, 1))) == (1, 1)
        and not any(node.literal("pad", (0, 0)))
        and int(node.literal("num_group", 1)) == 1
    )


def fuse_expand(net: Network, depthwise: str) -> Network:
    """The network with a 1x1 expansion and its depthwise convolution fused into one that has the latter's kernel.

    "Fused inverted bottleneck" (Gupta & Akin, "Accelerator-aware neural network design", 2020; EfficientNetV2). The
    norm and activation between the two are left out. The weights W[k, c] = dw[k] pw[k, c] are those of the composed
    convolutions, times the norm's factor; the norm's constant goes into the next norm's running mean, or into a bias.
    The fused convolution keeps the expansion's name, since its outputs form the expansion's group. UserError: no such
    block.
    """
    blocks = expansions(net)
    if depthwise not in blocks:
        raise _unknown(
            net, f"'{depthwise}' is not a depthwise convolution of an inverted bottleneck", depthwise, blocks
        )
    block = blocks[depthwise]
    expand, node = net.nodes[block.expand], net.nodes[block.depthwise]
    pointwise = net.arrays[net.weight(expand.name)].astype(np.float64)[:, :, 0, 0]
    kernel = net.arrays[net.weight(node.name)].astype(np.float64)
    factor, constant = np.ones(len(pointwise)), np.zeros(len(pointwise))
    if net.bias(expand.name) is not None:
        constant = constant + net.arrays[net.bias(expand.name)]
    if block.norm is not None:
        scale, shift, mean, variance = (
            net.arrays[net.nodes[j].name].astype(np.float64) for j, _ in net.nodes[block.norm].inputs[1:5]
        )
        factor = scale / np.sqrt(variance + float(net.nodes[block.norm].literal("eps", 1e-3)))
        constant = (constant - mean) * factor + shift
    multiplier = len(kernel) // len(pointwise)  # outputs of the depthwise convolution per input
    factor, constant, pointwise = (np.repeat(of, multiplier, 0) for of in (factor, constant, pointwise))
    fused = kernel * (pointwise * factor[:, None])[:, :, None, None]
    attrs = {key: value for key, value in node.attrs.items() if key != "num_group"}
    added = constant * kernel.sum(axis=(1, 2, 3))
    other = _with_convolution(net, block.depthwise, expand.inputs[0], attrs, fused, added)
    names = {node.name: expand.name, other.weight(node.name): net.weight(expand.name)}
    if other.bias(node.name) is not None:
        names[other.bias(node.name)] = net.bias(expand.name) or layer_name(expand.name) + "_bias"
    return _renamed(other, names)


def _renamed(net: Network, names: Mapping[str, str]) -> Network:
    """The network with some nodes and arrays renamed; `names`: old name -> new name."""
    nodes = tuple(replace(node, name=names.get(node.name, node.name)) for node in net.nodes)
    return replace(net, nodes=nodes, arrays={names.get(name, name): value for name, value in net.arrays.items()})


def resize_kernel(net: Network, layer: str, size: int) -> Network:
    """The network with one convolution's kernel resized to another odd size, with the same output positions.

    A larger kernel computes the same function, since its new weights are 0. A smaller one keeps the central weights.
    UserError: no such convolution, or a kernel that it cannot have.
    """
    names = [node.name for node in net.nodes if node.op == "Convolution"]
    if layer not in names:
        raise _unknown(net, f"'{layer}' is not a convolution", layer, names)
    i = net.index[layer]
    node, weight = net.nodes[i], net.arrays[net.weight(layer)]
    ones = (1,) * (weight.ndim - 2)
    dilate = node.literal("dilate", ones)
    pad = [p + d * (size - k) // 2 for p, d, k in zip(node.literal("pad", (0,) * len(ones)), dilate, weight.shape[2:])]
    if size % 2 == 0 or size < 1 or any(k % 2 == 0 for k in weight.shape[2:]) or min(pad) < 0:
        kernel = "x".join(map(str, weight.shape[2:]))
        raise UserError(
            f"network '{net.name}': '{layer}' has a kernel of {kernel}, which cannot be resized to {size}: sizes "
            "must be odd, and the padding must not become negative",
            "rewrite.kernel",
        )
    other = np.zeros((*weight.shape[:2], *(size for _ in ones)), np.float32)
    into, of = (
        tuple(slice((n - min(n, m)) // 2, (n + min(n, m)) // 2) for n, m in zip(a[2:], b[2:]))
        for a, b in ((other.shape, weight.shape), (weight.shape, other.shape))
    )
    other[(slice(None), slice(None), *into)] = weight[(slice(None), slice(None), *of)]
    attrs = {**node.attrs, "kernel": str((size,) * len(ones)), "pad": str(tuple(pad))}
    return _with_convolution(net, i, node.inputs[0], attrs, other, np.zeros(len(other)))


def depthwise_to_full(net: Network, depthwise: str) -> Network:
    """The same function with an ordinary convolution in place of a depthwise one.

    Its additional weights are 0, to be trained; its input and output channels are no longer tied. UserError: no such
    layer.
    """
    i = net.index.get(depthwise)
    if i is None or net.nodes[i].op != "Convolution" or not is_depthwise(net, i):
        names = [node.name for k, node in enumerate(net.nodes) if node.op == "Convolution" and is_depthwise(net, k)]
        raise _unknown(net, f"'{depthwise}' is not a depthwise convolution", depthwise, names)
    node, kernel = net.nodes[i], net.arrays[net.weight(depthwise)]
    n_in = net.shapes[node.inputs[0][0]][node.inputs[0][1]][1]
    full = np.zeros((len(kernel), n_in, *kernel.shape[2:]), np.float32)
    full[np.arange(len(kernel)), np.arange(len(kernel)) // (len(kernel) // n_in)] = kernel[:, 0]
    attrs = {key: value for key, value in node.attrs.items() if key != "num_group"}
    return _with_convolution(net, i, node.inputs[0], attrs, full, np.zeros(len(kernel)))


def droppable(net: Network) -> Dict[str, Tuple[int, Tensor]]:
    """Residual blocks whose shortcut is the block's own input: name of the addition -> (addition, shortcut)."""
    found = {}
    for branch, shortcut in residual_branches(net):
        for i in net.readers[branch] if _begins_at(net, branch, shortcut) else ():
            if operator(net.nodes[i].op).is_addition and shortcut in net.nodes[i].inputs:
                found[net.nodes[i].name] = i, shortcut
    return found


def _begins_at(net: Network, branch: Tensor, source: Tensor) -> bool:
    """Whether `branch` depends on nothing but `source` and arrays."""
    todo, seen = [branch], set()
    while todo:
        tensor = todo.pop()
        if tensor == source or tensor in seen:
            continue
        seen.add(tensor)
        if not net.nodes[tensor[0]].inputs:
            if not net.is_array(tensor[0]):
                return False  # the image
            continue
        todo += net.nodes[tensor[0]].inputs
    return True


def drop_block(net: Network, addition: str) -> Network:
    """The network without the residual block that ends in this addition; its shortcut replaces it.

    UserError: no such block.
    """
    blocks = droppable(net)
    if addition not in blocks:
        raise _unknown(net, f"no block that can be removed ends in '{addition}'", addition, blocks)
    i, shortcut = blocks[addition]

    def redirected(inputs: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        return tuple(shortcut if tensor == (i, 0) else tensor for tensor in inputs)

    nodes = tuple(replace(node, inputs=redirected(node.inputs)) for node in net.nodes)
    return _reachable(replace(net, nodes=nodes, outputs=redirected(net.outputs)))


def _unknown(net: Network, wrong: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among the known ones; it suggests the closest match, or else the first."""
    known = [layer_name(each) for each in known]
    near = difflib.get_close_matches(name, known, n=1) or known[:1]
    there = f"it has {len(known)}, such as '{near[0]}'" if known else "it has none"
    return UserError(f"network '{net.name}': {wrong}; {there}", "rewrite.name")


def _with_convolution(
    net: Network, i: int, source: Tensor, attrs: Dict[str, str], weight: np.ndarray, added: np.ndarray
) -> Network:
    """The network whose convolution i reads `source` with other weights; `added` is a constant added to each output.

    The convolution's bias absorbs the constant if it has one, otherwise the running mean of a norm that is the only
    reader, otherwise a new bias. UserError: another layer reads the same weight.
    """
    node, arrays = net.nodes[i], dict(net.arrays)
    name = net.weight(node.name)
    j = net.index[name]
    others = [net.nodes[r].name for r in net.readers[j, 0] if r != i]
    if others:
        raise UserError(
            f"network '{net.name}': '{node.name}' cannot be rewritten, because '{others[0]}' reads its weight too; "
            "choose another layer",
            "rewrite.shared",
        )
    arrays[name] = weight.astype(np.float32)
    shapes = [*net.shapes[:j], (weight.shape,), *net.shapes[j + 1 :]]
    nodes = list(net.nodes)
    nodes[i] = replace(node, attrs=attrs, inputs=(source, *node.inputs[1:]))
    if "__shape__" in nodes[j].attrs:
        nodes[j] = replace(nodes[j], attrs={**nodes[j].attrs, "__shape__": str(weight.shape)})
    readers = net.readers[i, 0]
    if added.any() and net.bias(node.name) is not None:
        arrays[net.bias(node.name)] = (arrays[net.bias(node.name)] + added).astype(np.float32)
    elif added.any() and len(readers) == 1 and is_norm(net, readers[0]):
        mean = net.nodes[net.nodes[readers[0]].inputs[3][0]].name
        arrays[mean] = (arrays[mean] - added).astype(np.float32)
    elif added.any():
        return _reachable(_with_bias(replace(net, nodes=tuple(nodes), shapes=tuple(shapes), arrays=arrays), i, added))
    return _reachable(replace(net, nodes=tuple(nodes), shapes=tuple(shapes), arrays=arrays))


def _with_bias(net: Network, i: int, bias: np.ndarray) -> Network:
    """The network with a bias for convolution i, which had none."""
    name, arrays = net.unused(net.nodes[i].name + "_bias"), dict(net.arrays)
    arrays[name] = bias.astype(np.float32)

    def edit(k: int, node: Node, add) -> int:
        if k == i:
            variable = add(Node("null", name, {}), (bias.shape,))
            attrs = {**node.attrs, "no_bias": "False"}
            node = replace(node, attrs=attrs, inputs=(*node.inputs, (variable, 0)))
        return add(node, net.shapes[k])

    return rewrite(net, edit, arrays)


def _reachable(net: Network) -> Network:
    """The network without the nodes that no output depends on, and without their arrays."""
    alive: Set[int] = {net.data}
    todo: List[int] = [i for i, _ in net.outputs]
    while todo:
        i = todo.pop()
        if i not in alive:
            alive.add(i)
            todo += [j for j, _ in net.nodes[i].inputs]
    kept = {net.nodes[i].name for i in alive}
    nodes = tuple(node if i in alive else replace(node, inputs=()) for i, node in enumerate(net.nodes))
    arrays = {name: value for name, value in net.arrays.items() if name in kept}
    whole = replace(net, nodes=nodes)
    return rewrite(whole, lambda i, node, add: add(node, net.shapes[i]) if i in alive else None, arrays)
