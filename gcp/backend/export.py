"""A network for other runtimes: as an ONNX file, or with int8 arithmetic, each compared with the network it came from.

ONNX files come from MXNet's exporter and are compared in onnxruntime before they are there. int8 networks come from
MXNet's quantization on oneDNN, run on CPUs, and are MXNet's own `-symbol.json` + `-0000.params` again.
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
from gcp.backend.engine import gluon, mx
from gcp.backend.files import load_arrays, paths, save_arrays
from gcp.errors import UserError
from gcp.graph.network import Network, Node, auxiliary
from gcp.graph.surgery import rewrite
from gcp.storage import replacing

OPSET, IR = 13, 8  # the newest operators that MXNet's exporter writes; a file format that older runtimes read
TOLERANCE = 1e-5  # largest difference between ONNX and MXNet, relative to the largest output
CHECKED_BATCHES = (1, 5)
ONNX_NEEDS = "pip install onnx==1.18.0 'onnxruntime>=1.17,<2'"  # MXNet's exporter reads what onnx 1.19 took away

Batches = Iterable[Tuple[np.ndarray, np.ndarray, int]]  # as `gcp.data` serves them: (x, y, n_valid)


# ---- ONNX -------------------------------------------------------------------------------------------------------


def to_onnx(net: Network, path: os.PathLike) -> Path:
    """Write the network as an ONNX file whose batch axis is free; input `data` (batch, channels, height, width).

    The file takes its place only when onnxruntime agrees with MXNet on random images, to `TOLERANCE`.
    UserError: a missing package, an operator that MXNet's exporter cannot write, another result, no place to write to.
    """
    path = Path(path)
    with replacing(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            run = _written(net, temporary)
        except ImportError as error:
            raise UserError(f"writing ONNX needs other packages ({error}): {ONNX_NEEDS}") from error
        except OSError:
            raise
        except Exception as error:  # the exporter, the checker and the runtime share no type of error
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
                    f"largest output is {largest:.2g} (batch of {n}): more than {TOLERANCE:g} of it is "
                    "no rounding; the file is not kept"
                )
    return path


def _written(net: Network, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Write the file, and give it as a function from images to outputs, in onnxruntime."""
    import onnx  # with onnxruntime a third of a second, and int8 does without
    from mxnet.onnx import export_model  # noqa: TID251

    with warnings.catch_warnings(), _unlogged(), _checked_as_written(onnx.checker.DEFAULT_CONTEXT):
        warnings.simplefilter("ignore")  # the exporter uses what onnx has deprecated
        spelt, shape = _spelt(net), ["batch", *net.input_shape]
        arrays = {k: mx.nd.array(v) for k, v in spelt.arrays.items()}
        how = {"dynamic": True, "dynamic_input_shapes": [tuple(shape)]}
        export_model(to_symbol(spelt), arrays, [(1, *net.input_shape)], np.float32, str(path), **how)
    model = onnx.load(str(path))
    _tidy(model, net)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return onnx_outputs(path, threads=1)


@contextlib.contextmanager
def _checked_as_written(rules: Any) -> Iterator[None]:
    """The exporter checks its graph by the newest operators' rules, although it writes those of `OPSET`."""
    newest, rules.opset_imports = rules.opset_imports, {"": OPSET}
    try:
        yield
    finally:
        rules.opset_imports = newest


def _spelt(net: Network) -> Network:
    """The same function in words that MXNet's exporter writes well.

    A reshape says all lengths but the batch's: other codes are not known to it. A dense layer along the last axis is
    one of rows between two reshapes: the exporter would compute their shapes in the file.
    """
    arrays = dict(net.arrays)

    def edit(i: int, node: Node, add: Callable[[Node, tuple], int]) -> int:
        (after,) = net.shapes[i][:1]
        before = net.shapes[net.nodes[i].inputs[0][0]][net.nodes[i].inputs[0][1]] if node.inputs else ()
        if node.op in ("Reshape", "reshape"):
            first = node.literal("shape")[0]
            if first <= 0:  # else the batch is another axis, and the shape is all numbers and a -1
                node = replace(node, attrs={**node.attrs, "shape": str((0 if first in (0, -2) else -1, *after[1:]))})
            return add(node, (after,))
        if node.op == "broadcast_to":  # whose lengths, the batch's too, would be written as they are for one image
            arrays[f"{node.name}_zeros"] = zeros = np.zeros((1, *after[1:]), np.float32)
            other = add(Node("null", f"{node.name}_zeros", {"__shape__": str(zeros.shape)}), (zeros.shape,))
            return add(Node("broadcast_add", node.name, {}, (*node.inputs, (other, 0))), (after,))
        if node.op != "FullyConnected":
            return add(node, net.shapes[i])
        node = replace(node, attrs={**node.attrs, "flatten": "True"})  # the exporter takes no word for False
        if net.nodes[i].literal("flatten", True) or len(before) == 2:
            return add(node, (after,))
        rows, (width, size) = math.prod(before[:-1]), (before[-1], after[-1])
        flat = Node("Reshape", f"{node.name}_rows", {"shape": str((-1, width))}, node.inputs[:1])
        inputs = ((add(flat, ((rows, width),)), 0), *node.inputs[1:])
        product = add(replace(node, inputs=inputs), ((rows, size),))
        whole = Node("Reshape", f"{node.name}_whole", {"shape": str((-1, *after[1:]))}, ((product, 0),))
        return add(whole, (after,))

    return rewrite(net, edit, arrays)


def onnx_outputs(path: os.PathLike, threads: int, each: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """An ONNX file as a function from images to its first output, by onnxruntime on the CPU.

    With `each` images go one by one, as files from elsewhere may ask for.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # by default it pins a thread to every core
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    if each:
        return lambda images: np.concatenate([session.run(None, {name: image[None]})[0] for image in images])
    return lambda images: session.run(None, {name: images})[0]


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """No messages below errors, and none of the terminal logging that the root logger's first message sets up."""
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers


def _tidy(model, net: Network) -> None:
    """What the exporter leaves to do on a loaded model: names of nodes, inputs, output shape, versions, resizing.

    It lists weights as inputs that a caller may replace, which keeps runtimes from folding them; gives the output no
    shape; and stamps onnx's newest versions although its operators are those of `OPSET`.
    """
    for node in model.graph.node:
        node.name = node.name or node.output[0]  # PyTorch's importers call modules and arrays by it
        place = next((a for a in node.attribute if a.name == "coordinate_transformation_mode"), None)
        resize = net.nodes[net.index[node.name]] if place and node.name in net.index else None
        if resize and not resize.literal("align_corners", True):  # the exporter takes it for True
            place.s = b"half_pixel"
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.graph.value_info[:]  # which has () where a shape is not known
    batch, classes = model.graph.output[0].type.tensor_type.shape.dim
    batch.dim_param, classes.dim_value = "batch", net.n_classes
    model.ir_version = IR
    model.opset_import[0].version = OPSET


# ---- int8 -------------------------------------------------------------------------------------------------------


def quantized(net: Network, batches: Batches) -> gluon.SymbolBlock:
    """The network with int8 arithmetic, as a hybridized block from images to logits, both float32, on the CPU.

    The ranges of all layers' outputs are the extremes over the images of `batches`, (x (n, 3, H, W), y, n_valid), which
    are held at once. Batch norms, activations and residual additions become part of the convs before them.
    UserError: no images, an MXNet without oneDNN, or nothing in the network that can be quantized.
    """
    if not mx.runtime.Features().is_enabled("MKLDNN"):
        raise UserError("int8 networks need an MXNet that is built with oneDNN; this one is not")
    images = [x[:n] for x, _, n in batches]
    if not images:
        raise UserError("int8 networks need images to find the ranges of their layers; none were given")
    data = mx.io.NDArrayIter(np.concatenate(images), batch_size=len(images[0]))
    arrays = {k: mx.nd.array(v) for k, v in net.arrays.items()}
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
    """Names of the block's convs and dense layers: those in int8, and those that stayed in float32."""
    nodes = json.loads(_symbol(block).tojson())["nodes"]
    found: Tuple[List[str], List[str]] = ([], [])
    for node in nodes:
        if node["op"] in ("_sg_mkldnn_conv", "_sg_mkldnn_fully_connected", "Convolution", "FullyConnected"):
            weight = nodes[node["inputs"][1][0]]["name"]
            is_float = node.get("attrs", {}).get("quantized", "false").lower() != "true"
            found[is_float].append(weight.replace("_quantize", "")[: -len("_weight")])
    return found


def save_quantized(block: gluon.SymbolBlock, prefix: os.PathLike) -> Tuple[Path, Path]:
    """Write `<prefix>-symbol.json` and `<prefix>-0000.params`, each atomically; plain MXNet's `imports` runs them.

    The files are not smaller than float32's: oneDNN's conv keeps float32 weights, and quantizes them in its first run.
    UserError: a float32 network is there under this prefix, or the folder does not let itself be written to.
    """
    symbol_path, params_path = paths(prefix)
    if symbol_path.exists() and '"quantized"' not in symbol_path.read_text():
        raise UserError(f"'{symbol_path}' is a float32 network, which int8 would overwrite; give another prefix")
    symbol = _symbol(block)
    aux = set(symbol.list_auxiliary_states())
    arrays = {f"{'aux' if k in aux else 'arg'}:{k}": p.data().asnumpy() for k, p in block.collect_params().items()}
    with replacing(symbol_path) as temporary:
        symbol_path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(params_path, arrays)
        temporary.write_text(symbol.tojson())
    return symbol_path, params_path


def load_quantized(prefix: os.PathLike) -> gluon.SymbolBlock:
    """Read what `save_quantized` wrote. UserError, naming the file, for one that is missing, truncated or another's."""
    symbol_path, params_path = paths(prefix)
    for path in (symbol_path, params_path):
        if not path.is_file():
            raise UserError(f"int8 network '{prefix}': file '{path}' is missing")
    try:
        symbol = mx.sym.load_json(symbol_path.read_text())
    except (ValueError, mx.MXNetError) as error:
        raise UserError(f"'{symbol_path}' is not a whole MXNet Symbol JSON") from error
    arrays = {k.split(":", 1)[-1]: v for k, v in load_arrays(params_path).items()}
    if set(symbol.list_inputs()) != {"data", *arrays}:
        raise UserError(
            f"'{params_path}' does not hold the arrays that '{symbol_path}' needs; "
            "the two should come from the same export"
        )
    block = _block(symbol, arrays)
    if not layers(block)[0]:
        raise UserError(f"'{symbol_path}' is no int8 network")
    return block


def _symbol(block: gluon.SymbolBlock) -> mx.sym.Symbol:
    return block(mx.sym.var("data"))


def _block(symbol: mx.sym.Symbol, arrays: Dict[str, np.ndarray]) -> gluon.SymbolBlock:
    """A hybridized block on the CPU, for inference only."""
    params = gluon.ParameterDict("")
    for name, value in arrays.items():
        p = params.get(name, shape=value.shape, dtype=value.dtype, grad_req="null", differentiable=False)
        p.initialize(mx.init.Zero(), ctx=mx.cpu())
        p.set_data(mx.nd.array(value, dtype=value.dtype))
    # Typed: MXNet cannot infer the other types from the weights alone, and Gluon would warn of it.
    block = gluon.SymbolBlock(symbol, mx.sym.var("data", dtype="float32"), params=params)
    block.hybridize(static_alloc=True, static_shape=True)
    return block


def outputs(block: gluon.SymbolBlock) -> Callable[[np.ndarray], np.ndarray]:
    """A block on the CPU as a function from images (n, channels, height, width) to outputs."""
    return lambda images: block(mx.nd.array(images)).asnumpy()
