"""A network for other runtimes: as an ONNX file, or with int8 arithmetic, each compared with the network it came from.

ONNX files come from MXNet's exporter, and are compared in onnxruntime before they are put in place. int8 networks come
from MXNet's quantization with oneDNN, run on CPUs, and are again saved as MXNet's own `-symbol.json` + `-0000.params`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

import numpy as np

from gcp.backend.blocks import predict, to_symbol
from gcp.backend.engine import copied, gluon, mx
from gcp.backend.files import load_arrays, save_arrays, symbol_text
from gcp.errors import UserError
from gcp.graph.network import Network, Node, auxiliary
from gcp.graph.surgery import rewrite
from gcp.storage import network_files, replacing

OPSET, IR = 13, 8  # the newest operators that MXNet's exporter writes; a file format that older runtimes can read
TOLERANCE = 1e-5  # largest difference between ONNX and MXNet, relative to the largest output
CHECKED_BATCHES = (1, 5)
ONNX_NEEDS = "pip install onnx==1.18.0 'onnxruntime>=1.17,<2'"  # MXNet's exporter uses what onnx 1.19 removed

Batches = Iterable[Tuple[np.ndarray, np.ndarray, int]]  # as `gcp.data` serves them: (x, y, n_valid)


# ---- ONNX -------------------------------------------------------------------------------------------------------


def to_onnx(net: Network, path: os.PathLike) -> Path:
    """Write the network as an ONNX file with a free batch axis; its input `data` is (batch, channels, height, width).

    The file is put in place only if onnxruntime agrees with MXNet on random images, to within `TOLERANCE`. Raises
    UserError if the network has several outputs, a package is missing, MXNet's exporter cannot write an operator, the
    results differ, or the file cannot be written.
    """
    path = Path(path)
    _check_one(len(net.outputs), f"network '{net.name}'")
    with replacing(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            run = _written(net, temporary)
        except ImportError as error:
            raise UserError(f"writing ONNX needs additional packages ({error}): {ONNX_NEEDS}") from error
        except OSError:
            raise
        except Exception as error:  # the exporter, the checker and the runtime share no exception type
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(f"network '{net.name}' cannot be written as ONNX: {reason}") from error
        rng = np.random.default_rng(0)
        for n in CHECKED_BATCHES:
            images = rng.normal(size=(n, *net.input_shape)).astype(np.float32)
            expected = predict(net, images)
            difference, largest = np.abs(run(images) - expected).max(), np.abs(expected).max()
            if not difference <= TOLERANCE * largest:  # so that NaN is refused
                raise UserError(
                    f"network '{net.name}' as ONNX differs from MXNet by {difference:.2g} where the "
                    f"largest output is {largest:.2g} (batch of {n}): more than rounding can "
                    f"explain ({TOLERANCE:g} of it); the file is not kept"
                )
    return path


def _written(net: Network, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Write the file, and return it as a function from images to outputs, run by onnxruntime."""
    import onnx  # takes a third of a second with onnxruntime; int8 does not need it
    from mxnet.onnx import export_model  # noqa: TID251

    with warnings.catch_warnings(), _unlogged(), _checked_as_written(onnx.checker.DEFAULT_CONTEXT):
        warnings.simplefilter("ignore")  # the exporter uses features that onnx has deprecated
        spelt, shape = _spelt(net), ["batch", *net.input_shape]
        arrays = {k: copied(v, dtype="float32") for k, v in spelt.arrays.items()}
        how = {"dynamic": True, "dynamic_input_shapes": [tuple(shape)]}
        export_model(to_symbol(spelt), arrays, [(1, *net.input_shape)], np.float32, str(path), **how)
    model = onnx.load(str(path))
    _tidy(model, net)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return onnx_outputs(path, threads=1)


@contextlib.contextmanager
def _checked_as_written(rules: Any) -> Iterator[None]:
    """Make the exporter check its graph by the rules of `OPSET`, which it writes, not by those of the newest opset."""
    newest, rules.opset_imports = rules.opset_imports, {"": OPSET}
    try:
        yield
    finally:
        rules.opset_imports = newest


def _spelt(net: Network) -> Network:
    """The same function in a form that MXNet's exporter writes well.

    A reshape states all lengths except the batch's, because the exporter does not know other codes. A dense layer along
    the last axis becomes a dense layer of rows between two reshapes, because the exporter would otherwise compute their
    shapes in the file.
    """
    arrays = dict(net.arrays)

    def edit(i: int, node: Node, add: Callable[[Node, tuple], int]) -> int:
        (after,) = net.shapes[i][:1]
        before = net.shapes[net.nodes[i].inputs[0][0]][net.nodes[i].inputs[0][1]] if node.inputs else ()
        if node.op in ("Reshape", "reshape"):
            first = node.literal("shape")[0]
            if first <= 0:  # else the batch is another axis, and the shape is numbers and one -1
                node = replace(node, attrs={**node.attrs, "shape": str((0 if first in (0, -2) else -1, *after[1:]))})
            return add(node, (after,))
        if node.op == "broadcast_to":  # its lengths, even the batch's, would be written as for one image
            arrays[f"{node.name}_zeros"] = zeros = np.zeros((1, *after[1:]), np.float32)
            other = add(Node("null", f"{node.name}_zeros", {"__shape__": str(zeros.shape)}), (zeros.shape,))
            return add(Node("broadcast_add", node.name, {}, (*node.inputs, (other, 0))), (after,))
        if node.op != "FullyConnected":
            return add(node, net.shapes[i])
        node = replace(node, attrs={**node.attrs, "flatten": "True"})  # without it, the exporter assumes False
        if net.nodes[i].literal("flatten", True) or len(before) == 2:
            return add(node, (after,))
        rows, (width, size) = math.prod(before[:-1]), (before[-1], after[-1])
        flat = Node("Reshape", f"{node.name}_rows", {"shape": str((-1, width))}, node.inputs[:1])
        inputs = ((add(flat, ((rows, width),)), 0), *node.inputs[1:])
        product = add(replace(node, inputs=inputs), ((rows, size),))
        whole = Node("Reshape", f"{node.name}_whole", {"shape": str((-1, *after[1:]))}, ((product, 0),))
        return add(whole, (after,))

    return rewrite(net, edit, arrays)


def _check_one(n_outputs: int, what: str) -> None:
    if n_outputs > 1:
        fix = "export the network with the one that you need"
        raise UserError(f"{what} has {n_outputs} outputs; ONNX files are written and compared with one only: {fix}",
                        "onnx.outputs")  # fmt: skip


def onnx_outputs(path: os.PathLike, threads: int, each: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """An ONNX file as a function from images to its output, run by onnxruntime on the CPU.

    With `each`, images are passed one by one, as files from elsewhere may require. Raises UserError if it has several
    outputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # by default it pins a thread to every core
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    _check_one(len(session.get_outputs()), f"'{path}'")
    name = session.get_inputs()[0].name
    if each:
        return lambda images: np.concatenate([session.run(None, {name: image[None]})[0] for image in images])
    return lambda images: session.run(None, {name: images})[0]


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Suppress messages below errors, and the terminal logging that the root logger's first message would set up."""
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers


def _tidy(model, net: Network) -> None:
    """Fix in a loaded model what the exporter leaves undone: node names, inputs, output shape, versions, resizing.

    The exporter lists weights as inputs that a caller may replace, which keeps runtimes from folding them; gives the
    output no shape; and stamps onnx's newest versions although its operators are those of `OPSET`.
    """
    for node in model.graph.node:
        node.name = node.name or node.output[0]  # PyTorch's importers name modules and arrays after it
        place = next((a for a in node.attribute if a.name == "coordinate_transformation_mode"), None)
        resize = net.nodes[net.index[node.name]] if place and node.name in net.index else None
        if resize and not resize.literal("align_corners", True):  # the exporter assumes True
            place.s = b"half_pixel"
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.graph.value_info[:]  # it has () where a shape is unknown
    (i, o), dims = net.outputs[0], model.graph.output[0].type.tensor_type.shape.dim
    dims[0].dim_param = "batch"
    for dim, size in zip(dims[1:], net.shapes[i][o][1:]):
        dim.dim_value = size
    model.ir_version = IR
    model.opset_import[0].version = OPSET


# ---- int8 -------------------------------------------------------------------------------------------------------


def quantized(net: Network, batches: Batches) -> gluon.SymbolBlock:
    """The network with int8 arithmetic, as a hybridized block on the CPU from images to logits, both in float32.

    The ranges of all layers' outputs are the extremes over the images of `batches`, (x (n, 3, H, W), y, n_valid), which
    are all held in memory at once. Batch norms, activations and residual additions become part of the convolutions
    before them. Raises UserError if there are no images, MXNet is built without oneDNN, or nothing in the network can
    be quantized.
    """
    if not mx.runtime.Features().is_enabled("MKLDNN"):
        raise UserError("int8 networks need an MXNet built with oneDNN; this one is not")
    images = [x[:n] for x, _, n in batches]
    if not images:
        raise UserError("int8 networks need images to find the ranges of their layers; none were given")
    data = mx.io.NDArrayIter(np.concatenate(images), batch_size=len(images[0]))
    arrays = {k: copied(v, dtype="float32") for k, v in net.arrays.items()}
    aux = {k: arrays.pop(k) for k in auxiliary(net)}
    try:
        how = {"calib_mode": "naive", "calib_data": data, "label_names": None, "quantized_dtype": "auto"}
        how |= {"quantize_mode": "smart", "quantize_granularity": "channel-wise"}
        symbol, args, aux = mx.contrib.quantization.quantize_model_mkldnn(to_symbol(net), arrays, aux, **how)
    except mx.MXNetError as error:
        raise UserError(f"network '{net.name}' cannot be quantized: {str(error).strip().splitlines()[0]}") from error
    block = _block(symbol, {k: v.asnumpy() for k, v in {**args, **aux}.items()})
    if not layers(block)[0]:
        raise UserError(f"network '{net.name}' has no layer that MXNet can quantize")
    return block


def layers(block: gluon.SymbolBlock) -> Tuple[List[str], List[str]]:
    """Names of the block's convolutions and dense layers: those in int8, and those that stayed in float32."""
    nodes = json.loads(_symbol(block).tojson())["nodes"]
    found: Tuple[List[str], List[str]] = ([], [])
    for node in nodes:
        if node["op"] in ("_sg_mkldnn_conv", "_sg_mkldnn_fully_connected", "Convolution", "FullyConnected"):
            weight = nodes[node["inputs"][1][0]]["name"]
            is_float = node.get("attrs", {}).get("quantized", "false").lower() != "true"
            found[is_float].append(weight.replace("_quantize", "")[: -len("_weight")])
    return found


def save_quantized(block: gluon.SymbolBlock, prefix: os.PathLike) -> Tuple[Path, Path]:
    """Write `<prefix>-symbol.json` and `<prefix>-0000.params`, each atomically; plain MXNet's `imports` loads them.

    The files are no smaller than those in float32: oneDNN's convolution keeps float32 weights, and quantizes them in
    its first run. Raises UserError if there is a float32 network under this prefix, or the folder cannot be written to.
    """
    symbol_path, params_path = network_files(prefix)
    if symbol_path.exists() and '"quantized"' not in symbol_path.read_text():
        raise UserError(f"'{symbol_path}' is a float32 network, which would be overwritten; give another prefix")
    symbol = _symbol(block)
    aux = set(symbol.list_auxiliary_states())
    arrays = {f"{'aux' if k in aux else 'arg'}:{k}": p.data().asnumpy() for k, p in block.collect_params().items()}
    with replacing(symbol_path) as temporary:
        symbol_path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(params_path, arrays)
        temporary.write_text(symbol.tojson())
    return symbol_path, params_path


def load_quantized(prefix: os.PathLike) -> gluon.SymbolBlock:
    """Read what `save_quantized` wrote.

    Raises UserError, which names the file, if one is missing, truncated or belongs to another network.
    """
    symbol_path, params_path = network_files(prefix)
    for path in (symbol_path, params_path):
        if not path.is_file():
            raise UserError(f"int8 network '{prefix}': file '{path}' is missing")
    symbol = mx.sym.load_json(symbol_text(symbol_path))
    arrays = {k.split(":", 1)[-1]: v for k, v in load_arrays(params_path).items()}
    if set(symbol.list_inputs()) != {"data", *arrays}:
        raise UserError(
            f"'{params_path}' does not hold the arrays that '{symbol_path}' needs; "
            "the two must come from the same export"
        )
    block = _block(symbol, arrays)
    if not layers(block)[0]:
        raise UserError(f"'{symbol_path}' is not an int8 network")
    return block


def _symbol(block: gluon.SymbolBlock) -> mx.sym.Symbol:
    return block(mx.sym.var("data"))


def _block(symbol: mx.sym.Symbol, arrays: Dict[str, np.ndarray]) -> gluon.SymbolBlock:
    """A hybridized block on the CPU, for inference only."""
    params = gluon.ParameterDict("")
    for name, value in arrays.items():
        p = params.get(name, shape=value.shape, dtype=value.dtype, grad_req="null", differentiable=False)
        p._load_init(copied(value), mx.cpu())
    # With its type: MXNet cannot infer the other types from the weights alone, and Gluon would warn about it.
    block = gluon.SymbolBlock(symbol, mx.sym.var("data", dtype="float32"), params=params)
    block.hybridize(static_alloc=True, static_shape=True)
    return block


def outputs(block: gluon.SymbolBlock) -> Callable[[np.ndarray], np.ndarray]:
    """A block on the CPU as a function from images (n, channels, height, width) to outputs."""
    return lambda images: block(mx.nd.array(images)).asnumpy()
