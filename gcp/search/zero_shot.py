"""Zero-shot scores: what an architecture promises before any training, without labels and without images.

Entropy and trainability are sums over places in the network, written as costs, so that a space computes them for all
its architectures at once (`Space.price`). `search.py validate` measures how well they rank trained networks: parameters
and multiply-accumulates rank about as well (Krishnakumar et al., "NAS-Bench-Suite-Zero", NeurIPS 2022).
"""

from __future__ import annotations

import math
from typing import Dict, List, NamedTuple, Tuple

import numpy as np

from gcp.cost.base import Cost, Term
from gcp.cost.layers import Layer, layers
from gcp.graph.channels import Tensor, has_weight
from gcp.graph.network import Network, Node
from gcp.graph.surgery import redrawn, resized

SAMPLES = 2048  # minimum number of images times output positions for estimating a segment's Jacobian
EPSILON = 1e-6


def entropy(net: Network) -> Cost:
    """The differential entropy of the last features, up to a factor that does not depend on widths.

    It is the sum over conv and dense layers of log(kernel positions x input channels that an output reads): Shen et
    al., "DeepMAD", CVPR 2023, section 3.2, proposition 2, for one scale.
    """

    def term(layer: Layer) -> Term:
        def value(*widths: int) -> float:
            n_in, _ = layer.widths(dict(zip(layer.groups, widths)))
            return math.log(layer.kernel_size * (1 if layer.depthwise else n_in))

        return Term(layer.groups, value, layer.name)

    return Cost([term(layer) for layer in layers(net)])


class Segment(NamedTuple):
    """The nodes between two tensors through which all data pass, with these tensors: its source and its result."""

    source: Tensor
    result: Tensor
    nodes: Tuple[int, ...]


def segments(net: Network) -> List[Segment]:
    """The shortest parts of a network, in order, that each have a layer with weights; a residual block is one part."""
    last: Dict[Tensor, int] = {}
    for i, node in enumerate(net.nodes):
        for tensor in node.inputs:
            if not net.is_array(tensor[0]):
                last[tensor] = i
    last.update(dict.fromkeys(net.outputs, len(net.nodes)))
    found, source, nodes, alive = [], (net.data, 0), [], {(net.data, 0)}
    for i, node in enumerate(net.nodes):
        if not node.inputs:
            continue
        if has_weight(node) and alive == {source_of(net, i)} and any(has_weight(net.nodes[j]) for j in nodes):
            found.append(Segment(source, source_of(net, i), tuple(nodes)))
            source, nodes = source_of(net, i), []
        nodes.append(i)
        alive |= {(i, o) for o in range(len(net.shapes[i])) if (i, o) in last}
        alive = {tensor for tensor in alive if last[tensor] > i}
    found.append(Segment(source, net.outputs[0], tuple(nodes)))
    return found


def source_of(net: Network, i: int) -> Tensor:
    """The one tensor that a layer reads besides its arrays."""
    return next(tensor for tensor in net.nodes[i].inputs if not net.is_array(tensor[0]))


def alone(net: Network, segment: Segment) -> Network:
    """A segment as a network of its own, whose input is the segment's source."""
    nodes, shapes = [Node("null", "data", {})], [(net.shapes[segment.source[0]][segment.source[1]],)]
    at, arrays = {segment.source: (0, 0)}, {}
    for i in segment.nodes:
        for j, o in net.nodes[i].inputs:
            if net.is_array(j) and (j, o) not in at:
                at[j, o] = len(nodes), 0
                nodes.append(net.nodes[j])
                shapes.append(net.shapes[j])
                arrays[net.nodes[j].name] = net.arrays[net.nodes[j].name]
        node = net.nodes[i]
        at.update({(i, o): (len(nodes), o) for o in range(len(net.shapes[i]))})
        nodes.append(Node(node.op, node.name, node.attrs, tuple(at[tensor] for tensor in node.inputs)))
        shapes.append(net.shapes[i])
    return Network(f"{net.name} part", tuple(nodes), (at[segment.result],), tuple(shapes), arrays)


def trainability(net: Network, known: Dict[tuple, float]) -> Cost:
    """How close the Jacobian of each segment is to an isometry, summed over the segments; 0 at best.

    Lee & Ham, "AZ-NAS", CVPR 2024, section 3.2: with Gaussian inputs, new weights and random signs as the gradient of
    the output, it is 2 - s - 1/s, where s is the largest singular value of the mean product of input and output
    gradients. There is one difference: each segment has a Gaussian input of its own, which makes the score a sum over
    places in the network; the authors average over blocks, so that their score does not grow with the number of blocks.
    `known` caches what was computed, for other architectures that contain the same segment.
    """

    def term(segment: Segment) -> Term:
        names = _groups(net, segment)
        signature = tuple(
            (node.op, *sorted(node.attrs.items()), *net.shapes[i], *(net.shapes[j] for j, _ in node.inputs))
            for i, node in ((i, net.nodes[i]) for i in segment.nodes)
        )

        def value(*widths: int) -> float:
            key = (signature, widths)
            if key not in known:
                small = resized(net, {**net.widths, **dict(zip(names, widths))})
                known[key] = isometry(redrawn(alone(small, segment), 0))
            return known[key]

        return Term(names, value, net.nodes[segment.nodes[0]].name)

    return Cost([term(segment) for segment in segments(net)[:-1]])  # the last one is the classifier


def _groups(net: Network, segment: Segment) -> Tuple[str, ...]:
    """The groups to which a segment's channels belong."""
    calls, labels = net.structure.calls, []
    made = ((i, o) for i in segment.nodes for o in range(len(net.shapes[i])))
    for i, o in (segment.source, *made):
        out = calls[i].outs[o] if i in calls and o < len(calls[i].outs) else None
        labels += [] if out is None else [net.structure.form(out.labels)]
    return tuple(dict.fromkeys(name for form in labels for name in form if name is not None))


def isometry(net: Network, seed: int = 0) -> float:
    """2 - s - 1/s for a network's Jacobian, with s as in `trainability`; 0 if it preserves the length of gradients."""
    from gcp.backend.blocks import to_block
    from gcp.backend.engine import autograd, mx
    from gcp.train.distributed import device

    rng = np.random.default_rng(seed)
    block = to_block(net, device(), trainable=set())
    i, o = net.outputs[0]
    n = max(2, -(-SAMPLES // math.prod(net.shapes[i][o][2:])))
    x = mx.nd.array(rng.normal(size=(n, *net.input_shape)).astype(np.float32), device())
    x.attach_grad()
    with autograd.record():
        y = block(x)
    signs = rng.choice([-1.0, 1.0], y.shape).astype(np.float32)
    y.backward(mx.nd.array(signs, device()))
    matrix = mean_product(x.grad.asnumpy().astype(np.float64), signs.astype(np.float64))
    s = float(np.linalg.svd(matrix, compute_uv=False)[0])
    return 2.0 - s - 1 / (s + EPSILON)


def mean_product(of_input: np.ndarray, of_output: np.ndarray) -> np.ndarray:
    """The mean over images and positions of the outer product of two gradients: (n, channels, height, width), or (n,
    channels) as of dense layers.

    If the output is smaller, neighbouring positions of the input count as further channels.
    """
    n, c, h, w = (*of_input.shape, 1, 1)[:4]
    tall, wide = of_output.shape[2:] if of_output.ndim == 4 else (1, 1)
    a, b = h // tall, w // wide
    of_input = of_input.reshape(n, c, h, w)[:, :, : tall * a, : wide * b].reshape(n, c, tall, a, wide, b)
    rows = of_input.transpose(0, 2, 4, 1, 3, 5).reshape(n * tall * wide, c * a * b)
    columns = of_output.reshape(n, -1, tall * wide).transpose(0, 2, 1).reshape(n * tall * wide, -1)
    return rows.T @ columns / len(rows)
