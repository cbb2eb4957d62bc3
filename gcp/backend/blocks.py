"""Networks as MXNet runs them: the graph as a Symbol, the arrays in a hybridized block, and back."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Callable, List, Optional, Tuple

import numpy as np

from gcp.backend.engine import gluon, mx
from gcp.graph.channels import is_norm
from gcp.graph.network import Network, Node, auxiliary, frozen
from gcp.graph.surgery import rewrite

NORM_RELU = "_contrib_BatchNormWithReLU"
KERNEL_BLOCK = 16  # channels that oneDNN's kernels lay out together, at most
BACKWARD_BULK = 10000  # nodes; more than any network's backward pass has


# ---- blocks -----------------------------------------------------------------------------------------------------


def to_symbol(
    net: Network, frozen_statistics: bool = False, fused: bool = False, trained: bool = False
) -> mx.sym.Symbol:
    """The graph as a Symbol, `trained` or for predicting only.

    With `frozen_statistics` batch norm uses its running statistics in training too. With `fused` a batch norm and
    the relu that alone reads it are one operator, of CPUs only. Not every network trains with that: neighbouring
    kernels may lay out channels in blocks of 8 and of 16, and oneDNN has no fused backward between the two.
    """
    nodes = [
        replace(n, attrs={**n.attrs, "use_global_stats": "True"}) if frozen_statistics and is_norm(net, i) else n
        for i, n in enumerate(net.nodes)
    ]
    for i, norm in _norms_before_relu(net) if fused else ():
        nodes[i] = replace(nodes[norm], op=NORM_RELU, name=nodes[i].name)
    nodes[net.data] = Node("null", "data", {})
    net = replace(net, nodes=tuple(nodes))
    return mx.sym.load_json((_with_trainable_concats(net) if trained else net).to_json())


def _with_trainable_concats(net: Network) -> Network:
    """The same graph with concatenations along channels whose parts do not begin at multiples of 16 in five dimensions.

    In four MXNet leaves them to oneDNN, whose backward raises "could not construct a sub-memory" where it would have
    to cut a gradient within the blocks of 8 or 16 channels that a conv has laid it out in.
    """

    def edit(i: int, node: Node, add: Callable) -> int:
        shapes = [net.shapes[j][o] for j, o in net.nodes[i].inputs]
        ends = np.cumsum([shape[1] for shape in shapes[:-1]]) if node.op == "Concat" and len(shapes[0]) == 4 else ()
        if not any(end % KERNEL_BLOCK for end in ends) or node.literal("dim", 1) != 1:
            return add(node, net.shapes[i])
        parts = [
            add(Node("expand_dims", f"{node.name}_part{k}", {"axis": "4"}, (t,)), ((*shape, 1),))
            for k, (t, shape) in enumerate(zip(node.inputs, shapes))
        ]
        whole = replace(node, name=node.name + "_parts", inputs=tuple((at, 0) for at in parts))
        at = add(whole, ((*net.shapes[i][0], 1),))
        return add(Node("Reshape", node.name, {"shape": "(0, 0, 0, -1)"}, ((at, 0),)), net.shapes[i])

    return rewrite(net, edit, net.arrays)


def _norms_before_relu(net: Network) -> List[Tuple[int, int]]:
    """(relu, batch norm) node pairs where the relu is the batch norm's only reader and feeds no strided conv.

    The gradient that a strided conv hands down can be laid out in memory as the fused operator's backward does not
    like: 19.5 ms instead of some 5 in ResNet-50 at 224 px, batch 8.
    """

    def is_strided(i: int) -> bool:
        return net.nodes[i].op == "Convolution" and max(net.nodes[i].literal("stride", (1, 1))) > 1

    return [
        (i, node.inputs[0][0])
        for i, node in enumerate(net.nodes)
        if (node.op == "relu" or node.op == "Activation" and node.attrs["act_type"] == "relu")
        and net.nodes[node.inputs[0][0]].op == "BatchNorm"
        and net.readers[node.inputs[0]] == [i]
        and not any(map(is_strided, net.readers[i, 0]))
    ]


def to_block(
    net: Network,
    ctx: Optional[mx.Context] = None,
    frozen_statistics: bool = False,
    trainable: Optional[set] = None,
    fused: bool = False,
    dtype: str = "float32",
) -> gluon.SymbolBlock:
    """A hybridized block that holds a copy of the arrays on `ctx`.

    `trainable`: names of the arrays that get gradients; all but the frozen ones by default. `fused`: see `to_symbol`;
    without it the graph runs as it is saved. With `dtype` float16 it computes in that, from float32 images to float32
    outputs; the arrays of batch norms stay float32, as MXNet's operator has them.
    """
    ctx = ctx or mx.cpu()
    of_norms = {net.nodes[j].name for i, n in enumerate(net.nodes) if is_norm(net, i) for j, _ in n.inputs[1:]}
    aux = auxiliary(net)
    fixed = frozen(net) | aux
    params = gluon.ParameterDict("")
    for name, value in net.arrays.items():
        learn = name not in fixed and (trainable is None or name in trainable)
        kind = value.dtype if dtype == "float32" or name in of_norms else dtype
        p = params.get(
            name, shape=value.shape, dtype=kind, grad_req="write" if learn else "null", differentiable=name not in aux
        )
        # What loading a file calls; to initialize and then set the values took twice as long.
        p._load_init(mx.nd.array(value, ctx=ctx, dtype=kind), ctx)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "input type is not inferred": the input's type is known when it comes
        fused = fused and ctx.device_type == "cpu"
        trained = trainable is None or bool(trainable)
        symbol, data = to_symbol(net, frozen_statistics, fused, trained), mx.sym.var("data")
        if dtype != "float32":
            data = mx.sym.var("data", dtype="float32")  # said, so that the types of all parameters follow from it
            symbol = mx.sym.cast(symbol(data=mx.sym.cast(data, dtype)), "float32")
        block = gluon.SymbolBlock(symbol, data, params=params)
    # One bulk for all of backward: in MXNet's bulks of 15 nodes some convs compute weight gradients that frozen
    # weights do not ask for. GCP's step of ResNet-18 at 32 px, batch 64: 93 -> 82 ms, gradients equal bit by bit.
    block.hybridize(static_alloc=True, static_shape=True, backward_bulk_size=BACKWARD_BULK)
    return block


def from_block(net: Network, block: gluon.SymbolBlock) -> Network:
    """The network with the block's present values; arrays that the block holds in float16 stay the network's own."""
    # A static graph's backward writes the running statistics; reading them does not wait for it by itself.
    mx.nd.waitall()
    return net.with_arrays(
        {k: p.data().asnumpy() for k, p in block.collect_params().items() if np.dtype(p.dtype) != np.float16}
    )


def predict(net: Network, images: np.ndarray) -> np.ndarray:
    """Outputs, shape (n, classes), of the network for images of shape (n, channels, height, width).

    Of several outputs, all values of an image in one row.
    """
    found = to_block(net)(mx.nd.array(images))
    if not isinstance(found, (list, tuple)):
        return found.asnumpy()
    return np.concatenate([y.asnumpy().reshape(len(images), -1) for y in found], axis=1)
