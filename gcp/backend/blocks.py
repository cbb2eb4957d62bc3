"""Networks as MXNet runs them: the graph as a Symbol, the arrays in a hybridized block, and back."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Callable, List, NamedTuple, Optional, Tuple

import numpy as np

from gcp.backend.engine import copied, gluon, has_avx512, mx
from gcp.graph.channels import is_depthwise, is_norm
from gcp.graph.network import Network, Node, auxiliary, frozen
from gcp.graph.surgery import rewrite

NORM_RELU = "_contrib_BatchNormWithReLU"
KERNEL_BLOCK = 16  # the most channels that oneDNN's kernels lay out as one block
BACKWARD_BULK = 10000  # nodes; more than any network's backward pass has


# ---- blocks -----------------------------------------------------------------------------------------------------


def to_symbol(
    net: Network, frozen_statistics: bool = False, fused: bool = False, trained: bool = False
) -> mx.sym.Symbol:
    """The graph as a Symbol, either to be `trained` on this machine or only for prediction.

    With `frozen_statistics`, batch norms use their running statistics in training, too. With `fused`, a batch norm and
    a ReLU that is its only reader become one operator, which exists only for CPUs. Not every network can be trained
    with fused operators: neighbouring kernels may lay out channels in blocks of 8 and of 16, and oneDNN has no fused
    backward pass between the two.
    """
    nodes = [
        replace(n, attrs={**n.attrs, "use_global_stats": "True"}) if frozen_statistics and is_norm(net, i) else n
        for i, n in enumerate(net.nodes)
    ]
    for i, norm in _norms_before_relu(net, trained) if fused else ():
        nodes[i] = replace(nodes[norm], op=NORM_RELU, name=nodes[i].name)
    nodes[net.data] = Node("null", "data", {})
    net = replace(net, nodes=tuple(nodes))
    return mx.sym.load_json((_for_backward(net) if trained else net).to_json())


def _for_backward(net: Network) -> Network:
    """The same function and gradients, with operators whose backward pass oneDNN can run, and runs efficiently."""
    edits = {"Concat": _in_five_dimensions, "Convolution": _of_small_images}

    def edit(i: int, node: Node, add: Callable) -> int:
        at = edits[node.op](net, i, node, add) if node.op in edits else None
        return add(node, net.shapes[i]) if at is None else at

    return rewrite(net, edit, net.arrays)


def _in_five_dimensions(net: Network, i: int, node: Node, add: Callable) -> Optional[int]:
    """A concatenation along channels, in five dimensions if its parts do not begin at multiples of 16; else None.

    In four dimensions, MXNet leaves it to oneDNN, whose backward pass raises "could not construct a sub-memory" if it
    would have to cut a gradient within the blocks of 8 or 16 channels in which a convolution has laid it out.
    """
    shapes = [net.shapes[j][o] for j, o in net.nodes[i].inputs]
    ends = np.cumsum([shape[1] for shape in shapes[:-1]]) if len(shapes[0]) == 4 else ()
    if not any(end % KERNEL_BLOCK for end in ends) or node.literal("dim", 1) != 1:
        return None
    parts = [
        add(Node("expand_dims", f"{node.name}_part{k}", {"axis": "4"}, (t,)), ((*shape, 1),))
        for k, (t, shape) in enumerate(zip(node.inputs, shapes))
    ]
    whole = replace(node, name=node.name + "_parts", inputs=tuple((at, 0) for at in parts))
    at = add(whole, ((*net.shapes[i][0], 1),))
    return add(Node("Reshape", node.name, {"shape": "(0, 0, 0, -1)"}, ((at, 0),)), net.shapes[i])


class Reduced(NamedTuple):
    """How a convolution of images smaller than its kernel is computed.

    The kernel is cut to the range from `begin` to `end`, its padding becomes `pad`, and images are extended by a
    `frame` of that many zeros at the bottom and on the right.
    """

    begin: Tuple[int, ...]
    end: Tuple[int, ...]
    pad: Tuple[int, ...]
    frame: Tuple[int, ...]


def reduced(net: Network, i: int) -> Optional[Reduced]:
    """The reduced form of node i, or None if it is computed as it is, as all nodes are on processors with AVX-512.

    Taps that only ever meet the padding are left out: of a 3x3 kernel over a single pixel, all but the middle one. If a
    depthwise kernel is still larger than its image, the image is put in a frame of zeros.
    """
    node, ones = net.nodes[i], (1, 1)
    if (
        has_avx512()
        or node.op != "Convolution"
        or len(node.literal("kernel")) != 2
        or node.literal("dilate", ones) != ones
    ):
        return None
    (j, o), out = node.inputs[0], net.shapes[i][0][2:]
    sides = net.shapes[j][o][2:]
    kernel, stride, pad = node.literal("kernel"), node.literal("stride", ones), node.literal("pad", (0, 0))
    begin, end = [], []
    for n, m, k, s, p in zip(sides, out, kernel, stride, pad):
        read = [t for t in range(k) if any(0 <= at * s - p + t < n for at in range(m))]
        if not read:  # the stride goes from padding to padding
            return None
        begin.append(read[0])
        end.append(read[-1] + 1)
    left = [p - a for a, p in zip(begin, pad)]
    for n, m, a, b, s, p in zip(sides, out, begin, end, stride, left):
        if (n + 2 * p - (b - a)) // s + 1 != m:  # the remaining padding would have to differ between the two sides
            begin, end, left = [0, 0], kernel, pad
    frame = [max(0, b - a - n) if is_depthwise(net, i) else 0 for n, a, b in zip(sides, begin, end)]
    if sum(end) - sum(begin) == sum(kernel) and not any(frame):
        return None
    return Reduced(tuple(begin), tuple(end), tuple(left), tuple(frame))


def _of_small_images(net: Network, i: int, node: Node, add: Callable) -> Optional[int]:
    """A convolution of images smaller than its kernel, in a form for whose gradient oneDNN has a kernel; else None.

    Without AVX-512, oneDNN computes the gradient of such weights image by image, over all taps. `docs/benchmarks.md`
    shows how much this form gains.
    """
    how = reduced(net, i)
    if how is None:
        return None
    shapes, out = [net.shapes[j][o] for j, o in net.nodes[i].inputs], net.shapes[i][0]
    (image, weight, *bias), kernel = node.inputs, tuple(b - a for a, b in zip(how.begin, how.end))
    if kernel != node.literal("kernel"):
        cut = {"begin": str((None, None, *how.begin)), "end": str((None, None, *how.end))}
        weight = (add(Node("slice", f"{node.name}_read", cut, (weight,)), ((*shapes[1][:2], *kernel),)), 0)
    attrs = {**node.attrs, "kernel": str(kernel), "pad": str(how.pad)}
    if not any(how.frame):
        return add(replace(node, attrs=attrs, inputs=(image, weight, *bias)), net.shapes[i])
    sides = [n + more for n, more in zip(shapes[0][2:], how.frame)]
    edges = (0, 0, 0, 0, 0, how.frame[0], 0, how.frame[1])
    frame = {"mode": "constant", "constant_value": "0", "pad_width": str(edges)}
    image = (add(Node("Pad", f"{node.name}_frame", frame, (image,)), ((*shapes[0][:2], *sides),)), 0)
    strides = node.literal("stride", (1, 1))
    wider = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(sides, kernel, strides, how.pad)]
    conv = replace(node, name=f"{node.name}_framed", attrs=attrs, inputs=(image, weight, *bias))
    cut = {"begin": "(None, None, 0, 0)", "end": str((None, None, *out[2:]))}
    return add(Node("slice", node.name, cut, ((add(conv, ((*out[:2], *wider),)), 0),)), net.shapes[i])


def _norms_before_relu(net: Network, trained: bool = False) -> List[Tuple[int, int]]:
    """(ReLU, batch norm) node pairs where the ReLU is the batch norm's only reader and feeds no strided convolution.

    The gradient that a strided convolution passes back can have a memory layout with which the fused operator's
    backward pass is slow: 19.5 ms instead of about 5 ms in ResNet-50 at 224 px, batch 8. The gradient or the output of
    a grouped convolution in its reduced form can have a layout with which the backward pass gives different gradients.
    """

    def is_strided(i: int) -> bool:
        return net.nodes[i].op == "Convolution" and max(net.nodes[i].literal("stride", (1, 1))) > 1

    def is_reshaped(i: int) -> bool:
        return trained and net.nodes[i].literal("num_group", 1) > 1 and reduced(net, i) is not None

    return [
        (i, node.inputs[0][0])
        for i, node in enumerate(net.nodes)
        if (node.op == "relu" or node.op == "Activation" and node.attrs["act_type"] == "relu")
        and net.nodes[node.inputs[0][0]].op == "BatchNorm"
        and net.readers[node.inputs[0]] == [i]
        and not any(is_strided(j) or is_reshaped(j) for j in net.readers[i, 0])
        and not is_reshaped(net.nodes[node.inputs[0][0]].inputs[0][0])
    ]


def to_block(
    net: Network,
    ctx: Optional[mx.Context] = None,
    frozen_statistics: bool = False,
    trainable: Optional[set] = None,
    fused: bool = False,
    dtype: str = "float32",
    gradients: bool = True,
) -> gluon.SymbolBlock:
    """A hybridized block that holds a copy of the arrays on `ctx`, by default the CPU.

    `trainable`: names of the arrays that get gradients; by default all but the frozen ones. Without `gradients`, none
    get them, but the operators are the same. `fused`: see `to_symbol`; without it, no operators are fused. With `dtype`
    float16, the block computes in float16, from float32 images to float32 outputs; the arrays of batch norms stay
    float32, as MXNet's operator requires.
    """
    ctx = ctx or mx.cpu()
    of_norms = {net.nodes[j].name for i, n in enumerate(net.nodes) if is_norm(net, i) for j, _ in n.inputs[1:]}
    aux = auxiliary(net)
    fixed = frozen(net) | aux
    params = gluon.ParameterDict("")
    for name, value in net.arrays.items():
        learn = gradients and name not in fixed and (trainable is None or name in trainable)
        kind = value.dtype if dtype == "float32" or name in of_norms else dtype
        p = params.get(
            name, shape=value.shape, dtype=kind, grad_req="write" if learn else "null", differentiable=name not in aux
        )
        # This is what loading a file calls; initializing and then setting the values took twice as long.
        p._load_init(copied(value, ctx, kind), ctx)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "input type is not inferred": it is known once there is an input
        fused = fused and ctx.device_type == "cpu"
        trained = trainable is None or bool(trainable)
        symbol, data = to_symbol(net, frozen_statistics, fused, trained), mx.sym.var("data")
        if dtype != "float32":
            data = mx.sym.var("data", dtype="float32")  # stated, so that all parameters' types follow from it
            symbol = mx.sym.cast(symbol(data=mx.sym.cast(data, dtype)), "float32")
        block = gluon.SymbolBlock(symbol, data, params=params)
    # One bulk for the whole backward pass: in MXNet's bulks of 15 nodes, some convs compute weight gradients that
    # frozen weights do not need. GCP's step of ResNet-18 at 32 px, batch 64: 93 -> 82 ms, with bit-identical gradients.
    block.hybridize(static_alloc=True, static_shape=True, backward_bulk_size=BACKWARD_BULK)
    return block


def from_block(net: Network, block: gluon.SymbolBlock) -> Network:
    """The network with the block's current values; arrays that the block holds in float16 stay the network's own."""
    # A static graph's backward pass writes the running statistics, and reading them does not wait for it.
    mx.nd.waitall()
    return net.with_arrays(
        {k: p.data().asnumpy() for k, p in block.collect_params().items() if np.dtype(p.dtype) != np.float16}
    )


def predict(net: Network, images: np.ndarray) -> np.ndarray:
    """The network's outputs, shape (n, classes), for images of shape (n, channels, height, width).

    If the network has several outputs, all values of an image are in one row.
    """
    found = to_block(net, gradients=False)(mx.nd.array(images))
    if not isinstance(found, (list, tuple)):
        return found.asnumpy()
    return np.concatenate([y.asnumpy().reshape(len(images), -1) for y in found], axis=1)
