"""ONNX files as networks: each ONNX operator becomes one or several of MXNet's, for a batch of one image.

Whatever does not depend on the image is computed when the file is read: shape arithmetic, copies of arrays. What
remains is the graph that one would have written by hand, so that everything known about MXNet's operators applies to
it. Shapes come from MXNet itself, operator by operator. The batch axis stays free: a reshape copies it.

A translation is a function of a `Call`; to support another operator, add another function.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from gcp.backend import onnx_files
from gcp.backend.engine import mx
from gcp.backend.files import INPUT_SHAPE, first_line, node_shapes
from gcp.errors import UserError
from gcp.graph.network import Network, Node

if TYPE_CHECKING:
    import onnx

Shape = Tuple[int, ...]
LOWEST, HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)


class Value(NamedTuple):
    """A tensor that depends on the image, or a variable: a node's output, its shape, and which axis is the batch.

    Attention splits queries, keys and values along an axis ahead of the batch. Variables have no batch axis.
    """

    node: int
    output: int
    shape: Shape
    batch: Optional[int] = None


class Parts(NamedTuple):
    """A sequence of tensors, which is how PyTorch's exporter writes a split that it has not optimised."""

    values: List[Value]


Operand = Union[Value, Parts, np.ndarray]
ANY_BATCH = {  # MXNet's operators for which it does not matter which axis is the batch
    "Reshape", "transpose", "slice_axis", "slice", "SliceChannel", "elemwise_add", "elemwise_mul", "elemwise_sub",
    "elemwise_div", "broadcast_add", "broadcast_mul", "broadcast_sub", "broadcast_div", "softmax", "take",
    "_plus_scalar", "_minus_scalar", "_mul_scalar", "_div_scalar", "_linalg_gemm2", "batch_dot", "Activation", "sqrt",
    "square", "sum", "mean", "LayerNorm",
}  # fmt: skip
# Kernels, borders and steps can ask for any amount of work and memory, however small the result is.
SLIDING = (
    "Conv", "ConvTranspose", "DeformConv", "MaxPool", "AveragePool", "LpPool", "MaxRoiPool", "RoiAlign", "MaxUnpool",
    "Col2Im",
)  # fmt: skip
TRANSLATIONS: Dict[str, Callable[["Call"], Union[Operand, List[Operand]]]] = {}


def load(path: str, input_shape: Optional[Sequence[int]] = None) -> Network:
    """The network of an ONNX file. `input_shape` is needed if the file leaves height and width free.

    Raises UserError for anything wrong with the file or its external data, an operator that has no translation, or an
    input that the network cannot take.
    """
    place = Path(path)
    model = onnx_files.read_model(place)
    name, shape = onnx_files.image_input(place, model)
    if input_shape is not None:
        if shape[0] not in (0, input_shape[0]):
            wrong = f"takes images with {shape[0]} channels, not {input_shape[0]}"
            raise UserError(f"'{path}' {wrong}; give the input shape that it was made for", "onnx.shape")
        shape = list(input_shape)
    if 0 in shape:
        raise UserError(
            f"'{path}' leaves the size of its images free ({'x'.join(str(d or '?') for d in shape)}); give one: "
            "--input channels,height,width (data.input in a configuration)",
            "onnx.shape",
        )
    builder = Builder(place, model)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # MXNet prints before it raises
        warnings.simplefilter("ignore")
        builder.values[name] = builder.add(Node("null", "data", {}), (1, *shape))._replace(batch=0)
        for number, node in enumerate(model.graph.node):
            builder.step(number, node)
        return builder.network([output.name for output in model.graph.output])


class Builder:
    """The graph under construction, and the operand for every name in the file that has been met so far."""

    def __init__(self, path: Path, model: "onnx.ModelProto") -> None:
        self.path, self.opset = path, onnx_files.opset_of(model)
        self.values: Dict[str, Operand] = dict(onnx_files.arrays(path, model))
        constants = onnx_files.attribute_tensors(model)  # which the nodes still have to read
        self.room = onnx_files.room() - sum(onnx_files.n_bytes(path, tensor) for tensor in constants)
        self.nodes: List[Node] = []
        self.shapes: List[Tuple[Shape, ...]] = []
        self.arrays: Dict[str, np.ndarray] = {}
        self.variables: Dict[Tuple[str, bool], Value] = {}  # for weights, which several nodes of the file may read
        self.taken = {"data": 0}  # name -> how often it was requested again

    def step(self, number: int, node: "onnx.NodeProto") -> None:
        """Translate one node of the file. Raises UserError if it cannot be translated."""
        where = f"'{self.path}': node '{node.name or number}' ({node.op_type})"
        for name in node.input:
            if name and name not in self.values:
                raise UserError(
                    f"{where} reads '{name}', which no earlier node produces; {onnx_files.AGAIN}", "onnx.node"
                )
        inputs = [self.values[name] if name else None for name in node.input]
        try:
            attributes = attributes_of(node, self.path)
            if node.op_type == "Constant":
                made = _constant(attributes)
            elif node.op_type in ("Shape", "Size") and inputs:
                made = _shape(node.op_type, inputs[0], attributes)
            elif not any(isinstance(x, (Value, Parts)) for x in inputs):
                made = self.fold(node, inputs)
            elif node.domain not in ("", "ai.onnx") or node.op_type not in TRANSLATIONS:
                kind = f"{node.domain}.{node.op_type}".lstrip(".")
                raise UserError(
                    f"{where}: there is no translation for the operator '{kind}'; replace it in the network, or "
                    "export the part before it",
                    "onnx.operator",
                )
            else:
                made = TRANSLATIONS[node.op_type](Call(self, node, number, inputs, attributes))
        except (UserError, MemoryError):
            raise
        except Exception as error:  # onnx, its reference and MXNet each have exception types of their own
            raise UserError(f"{where} cannot be translated: {first_line(error)}", "onnx.node") from error
        for name, operand in zip(node.output, made if isinstance(made, list) else [made]):
            self.values[name] = operand

    def fold(self, node: "onnx.NodeProto", inputs: Sequence[Optional[np.ndarray]]) -> List[np.ndarray]:
        """Evaluate a node of constants with ONNX's reference, after checking its size, as small files can ask for much.

        Raises ValueError if the node runs graphs of its own, which need not terminate, slides a window over constants,
        or has a result that is text, whose size its shape does not tell, or that memory has no room for.
        """
        import onnx
        from onnx.reference import ReferenceEvaluator

        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise ValueError("it runs a subgraph; export the network without control flow")
        if node.op_type in SLIDING:
            raise ValueError("it slides a window over constants; compute them before the export")
        given = {name: onnx.numpy_helper.from_array(x, name) for name, x in zip(node.input, inputs) if name}
        types = {n: onnx.helper.make_tensor_type_proto(x.data_type, tuple(x.dims)) for n, x in given.items()}
        schema, opsets = onnx.defs.get_schema(node.op_type, self.opset, ""), [onnx.helper.make_opsetid("", self.opset)]
        found = onnx.shape_inference.infer_node_outputs(schema, node, types, given, opset_imports=opsets)
        for kind in found.values():
            if kind.tensor_type.elem_type == onnx.TensorProto.STRING:
                raise ValueError("it makes text; export the network without text")
            dims = kind.tensor_type.shape.dim
            size = math.prod(d.dim_value for d in dims if d.HasField("dim_value")) * 8
            if size > self.room or not all(d.HasField("dim_value") for d in dims):
                raise ValueError(f"its result of {size:,} bytes or more does not fit in memory")
            self.room -= size
        constants = {name: x for name, x in zip(node.input, inputs) if name}
        return list(ReferenceEvaluator(node, opsets={"": self.opset}).run(None, constants))

    def add(self, node: Node, *shapes: Shape) -> Value:
        """Append a node; returns its first output."""
        self.nodes.append(node)
        self.shapes.append(shapes)
        return Value(len(self.nodes) - 1, 0, shapes[0])

    def unique(self, name: str) -> str:
        """The name in characters that MXNet accepts, with a number appended if it is taken."""
        name = re.sub(r"[^\w.]+", "_", name).strip("_.") or "node"
        unique = name
        while unique in self.taken:
            self.taken[name] += 1
            unique = f"{name}_{self.taken[name]}"
        self.taken[unique] = 0
        return unique

    def network(self, outputs: Sequence[str]) -> Network:
        """The graph up to the outputs with these names, without nodes that they do not need.

        Raises UserError if an output does not depend on the images, image by image.
        """
        heads = [self.values.get(name) for name in outputs]
        if not heads or not all(isinstance(head, Value) and head.batch == 0 for head in heads):
            what = "its outputs do not depend on the images, or not on each image separately"
            raise UserError(f"'{self.path}': {what}; {onnx_files.AGAIN}", "onnx.node")
        needed, todo = set(), [head.node for head in heads]
        while todo:
            i = todo.pop()
            if i not in needed:
                needed.add(i)
                todo += [j for j, _ in self.nodes[i].inputs]
        new = {i: k for k, i in enumerate(sorted(needed))}
        nodes = [replace(self.nodes[i], inputs=tuple((new[j], o) for j, o in self.nodes[i].inputs)) for i in new]
        arrays = {node.name: self.arrays[node.name] for node in nodes if node.name in self.arrays}
        net = Network(self.path.stem, tuple(nodes), tuple((new[h.node], h.output) for h in heads), (), arrays)
        return replace(net, shapes=node_shapes(net, self.shapes[0][0][1:]))


class Call:
    """One node of the file, as its translation sees it."""

    def __init__(self, builder: Builder, node, number: int, inputs: Sequence[Optional[Operand]], attributes) -> None:
        self.builder, self.node, self.inputs, self.attributes = builder, node, list(inputs), attributes
        self.name = node.name or f"{node.op_type.lower()}{number}"
        # A layer is named after the module that holds its weight, if the file states that name.
        owner = [n for n, x in zip(node.input[1:2], inputs[1:2]) if not isinstance(x, Value) and n.endswith(".weight")]
        if owner and owner[0][: -len(".weight")] not in builder.taken:
            self.name = owner[0][: -len(".weight")]

    def get(self, key: str, default: Any = None, at: Optional[int] = None) -> Any:
        """An attribute, or the constant input `at` that replaces it in later opsets."""
        if key in self.attributes:
            return self.attributes[key]
        return default if at is None or not self.has(at) else self.constant(at).tolist()

    def has(self, k: int) -> bool:
        """Whether input k is given."""
        return k < len(self.inputs) and self.inputs[k] is not None and getattr(self.inputs[k], "size", 1) > 0

    def tensor(self, k: int = 0) -> Value:
        """Input k, which depends on the image. Raises ValueError if it does not."""
        if not isinstance(self.inputs[k], Value):
            raise ValueError(f"its input {k} must depend on the images")
        return self.inputs[k]

    def constant(self, k: int) -> np.ndarray:
        """Input k, which does not depend on the image. Raises ValueError if it does."""
        if not isinstance(self.inputs[k], np.ndarray):
            raise ValueError(f"its input {k} must not depend on the images")
        return self.inputs[k]

    def axis(self, default: int) -> int:
        """The attribute `axis`, counted from the first axis."""
        return range(len(self.tensor().shape))[self.get("axis", default)]

    def emit(self, op: str, *inputs: Operand, name: Optional[str] = None, n: int = 1, **attrs: Any) -> Any:
        """Append a node of MXNet's operator `op`; returns its output, or the list of its `n` outputs if `n` > 1."""
        name = self.builder.unique(name or self.name)
        of = [self.array("constant", x, name) if isinstance(x, np.ndarray) else x for x in inputs]
        batches = {x.batch for x in of} - {None}
        if len(batches) > 1 or batches != {0} and op not in ANY_BATCH:
            raise ValueError("it treats the batch axis as another, or combines tensors with different batch axes")
        node = Node(op, name, {k: str(v) for k, v in attrs.items()}, tuple((x.node, x.output) for x in of))
        shapes = inferred(node, [x.shape for x in of], n)
        first = self.builder.add(node, *shapes)._replace(batch=batches.pop())
        return first if n == 1 else [first._replace(output=o, shape=shapes[o]) for o in range(n)]

    def array(self, role: str, value: np.ndarray, of: Optional[str] = None) -> Value:
        """A new variable that holds the value, named after its role in a layer."""
        if value.dtype.kind not in "fiub" or 0 in value.shape or not value.ndim:
            raise ValueError(f"its {role} must be an array of numbers; its shape is {value.shape}")
        name = self.builder.unique(f"{of or self.name}_{role}")
        self.builder.arrays[name] = np.ascontiguousarray(value, np.float32)
        # MXNet infers the shapes of a layer's arrays, but not of an array that is added to a tensor.
        return self.builder.add(Node("null", name, {INPUT_SHAPE: str(value.shape)} if of else {}), value.shape)

    def weight(self, k: int, transposed: bool = False) -> Value:
        """Input k as a layer's weight: one variable for all layers that read it under the same name."""
        key = (self.node.input[k], transposed)
        if key not in self.builder.variables:
            value = self.constant(k)
            self.builder.variables[key] = self.array("weight", value.T if transposed else value)
        return self.builder.variables[key]

    def reshape(self, x: Value, shape: Sequence[int], batch: int = 0) -> Value:
        """The tensor in another shape, with the batch at another axis; the tensor itself if it already has both."""
        shape = tuple(map(int, shape))
        if shape == x.shape and batch == x.batch:
            return x
        if batch == x.batch == 0:
            return self.emit("Reshape", x, shape=reshape_codes(x.shape, shape))
        if math.prod(shape[:batch]) != math.prod(x.shape[: x.batch]) or shape[batch] != 1:
            raise ValueError(f"it reshapes {x.shape} to {shape}, where axis {x.batch} is the batch")
        codes = (*shape[:batch], -1, *shape[batch + 1 :])
        return self.emit("Reshape", x, shape=codes)._replace(batch=batch)

    def padded(self, x: Value, begin: Sequence[int], end: Sequence[int], **how: Any) -> Value:
        """The tensor with borders added along its last axes; negative borders remove positions."""
        first = len(x.shape) - len(begin)
        for axis, (b, e) in enumerate(zip(begin, end), first):
            if b < 0 or e < 0:
                stop = x.shape[axis] + min(e, 0)
                x = self.emit("slice_axis", x, axis=axis, begin=max(-b, 0), end=stop)
        width = [(max(b, 0), max(e, 0)) for b, e in zip(begin, end)]
        width, shape = [(0, 0)] * first + width, x.shape
        if not any(map(any, width)):
            return x
        more = max(4 - len(shape), int(any(width[1])))  # MXNet pads all but the first two of four or five axes
        x = self.reshape(x, (shape[0], *(1,) * more, *shape[1:]))
        width[1:1] = [(0, 0)] * more
        x = self.emit("Pad", x, pad_width=tuple(np.ravel(width).tolist()), **how)
        return self.reshape(x, (shape[0], *x.shape[1 + more :]))


def inferred(node: Node, shapes: Sequence[Shape], n: int = 1) -> Tuple[Shape, ...]:
    """Shapes of a node's first `n` outputs, inferred by MXNet. Raises ValueError if its inputs do not fit together."""
    given = {f"input{k}": tuple(shape) for k, shape in enumerate(shapes)}
    node = replace(node, inputs=tuple((k, 0) for k in range(len(given))))
    nodes, heads = (*(Node("null", name, {}) for name in given), node), tuple((len(given), o) for o in range(n))
    symbol = mx.sym.load_json(Network("", nodes, heads, (), {}).to_json())
    args, outs, aux = symbol.infer_shape(**{name: given[name] for name in symbol.list_arguments()})
    names = [*symbol.list_arguments(), *symbol.list_auxiliary_states()]
    if args is None or any(tuple(s) != given[name] for name, s in zip(names, [*args, *aux])):
        raise ValueError(f"its input shapes {', '.join(map(str, shapes))} are incompatible")
    if any(not s or 0 in s for s in outs):
        raise ValueError("its result is empty, or a single number; the images may be too small")
    return tuple(tuple(s) for s in outs)


def attributes_of(node: "onnx.NodeProto", path: Path) -> Dict[str, Any]:
    """The node's attributes as numbers, texts, tuples and arrays."""
    import onnx

    found = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = onnx_files.array(path, value)
        elif isinstance(value, bytes):
            value = value.decode()
        found[attribute.name] = tuple(value) if attribute.type in (6, 7, 8) else value
    return found


def _constant(attributes: Dict[str, Any]) -> np.ndarray:
    """The value of a Constant node, which is a tensor, several numbers or one number."""
    (key, value), kinds = next(iter(attributes.items())), {"value_int": np.int64, "value_float": np.float32}
    return value if key == "value" else np.asarray(value, kinds[key.rstrip("s")])


def _shape(kind: str, x: Operand, attributes: Dict[str, Any]) -> np.ndarray:
    """The shape of a tensor or a part of it, or the tensor's size."""
    if kind == "Size":
        return np.array(math.prod(x.shape), np.int64)
    return np.array(x.shape[attributes.get("start", 0) : attributes.get("end", len(x.shape))], np.int64)


def reshape_codes(old: Shape, new: Shape) -> Shape:
    """MXNet's `shape` for a reshape that is given for a batch of one image and is to hold for any batch.

    0 copies an axis, -1 infers one, -2 copies the rest, -3 joins two axes, -4 splits one. When an axis is split, the
    longer part is the inferred one, because its channels can be removed later. If the first axis changes, it is a
    multiple of the batch. Raises ValueError if the two shapes hold different numbers of values.
    """
    if math.prod(old) != math.prod(new) or not old or not new:
        raise ValueError(f"{old} cannot be reshaped to {new}")
    if old[0] != new[0]:
        return (-1, *new[1:])
    short = min(len(old), len(new))
    start = next((k for k in range(short) if old[k] != new[k]), short)
    end = next((k for k in range(short - start) if old[-1 - k] != new[-1 - k]), short - start)
    gone, made = old[start : len(old) - end], new[start : len(new) - end]
    rest = (-2,) if end else ()
    if len(gone) == 2 and len(made) == 1:
        return (0,) * start + (-3,) + rest
    if len(gone) == 1 and len(made) == 2:
        return (0,) * start + (-4, *((-1, made[1]) if made[0] > made[1] else (made[0], -1))) + rest
    if not end and len(made) == 1:
        return (0,) * start + (-1,)
    return (0,) * start + new[start:]


def translation(*names: str) -> Callable:
    """Decorator that makes the function the translation of ONNX's operators with these names."""

    def add(function):
        TRANSLATIONS.update(dict.fromkeys(names, function))
        return function

    return add


# ---- layers ---------------------------------------------------------------------------------------------------------


def _window(call: Call, x: Value, kernel: Sequence[int]) -> Tuple[Dict[str, Shape], Shape, Shape]:
    """Kernel, stride and dilation by MXNet's names, and the padding at the beginning and at the end of each axis."""
    n = len(kernel)
    stride, dilate = tuple(call.get("strides", (1,) * n)), tuple(call.get("dilations", (1,) * n))
    if min((*kernel, *stride, *dilate, call.get("group", 1))) < 1 or not len(stride) == len(dilate) == n:
        raise ValueError("its kernel, strides, dilations or groups are invalid")  # MXNet would divide by zero
    found, auto = {"kernel": tuple(kernel), "stride": stride, "dilate": dilate}, call.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = tuple(call.get("pads", (0,) * 2 * n))
        return found, pads[:n], pads[n:]
    sizes = zip(x.shape[2:], kernel, stride, dilate)
    total = [max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0) for size, k, s, d in sizes]
    small, large = tuple(t // 2 for t in total), tuple(-(-t // 2) for t in total)
    if auto == "VALID":
        small = large = (0,) * n
    return found, *((small, large) if auto != "SAME_LOWER" else (large, small))


def _even(call: Call, x: Value, begin: Shape, end: Shape, **how: Any) -> Tuple[Value, Shape]:
    """Pad beforehand, with `how`, the excess of one end over the other, because MXNet's layers pad both ends alike."""
    pad = tuple(map(min, begin, end))
    more = ([b - p for b, p in zip(begin, pad)], [e - p for e, p in zip(end, pad)])
    return call.padded(x, *more, **how), pad


ZEROS = {"mode": "constant", "constant_value": 0.0}


@translation("Conv")
def _conv(call: Call) -> Value:
    x, weight = call.tensor(), call.constant(1)
    window, *ends = _window(call, x, weight.shape[2:])
    x, pad = _even(call, x, *ends, **ZEROS)
    inputs = [call.weight(1)] + ([call.array("bias", call.constant(2))] if call.has(2) else [])
    attrs = {"num_filter": len(weight), "num_group": call.get("group", 1), "no_bias": not call.has(2)}
    return call.emit("Convolution", x, *inputs, **window, pad=pad, **attrs)


@translation("ConvTranspose")
def _deconv(call: Call) -> Value:
    weight, n = call.constant(1), call.constant(1).ndim - 2
    window, begin, end = _window(call, call.tensor(), weight.shape[2:])
    if begin != end or "output_shape" in call.attributes or call.get("auto_pad", "NOTSET") != "NOTSET":
        raise ValueError("its padding differs between the two ends, which MXNet does not support")
    groups = call.get("group", 1)
    inputs = [call.weight(1)] + ([call.array("bias", call.constant(2))] if call.has(2) else [])
    attrs = {"num_filter": weight.shape[1] * groups, "num_group": groups, "no_bias": not call.has(2)}
    adjust = tuple(call.get("output_padding", (0,) * n))
    return call.emit("Deconvolution", call.tensor(), *inputs, **window, pad=begin, adj=adjust, **attrs)


@translation("Gemm")
def _gemm(call: Call) -> Value:
    x, weight = call.tensor(), call.constant(1)
    if len(x.shape) != 2 or call.get("transA", 0):
        raise ValueError("it multiplies something other than one row of numbers per image")
    alpha, transposed = np.float32(call.get("alpha", 1.0)), not call.get("transB", 0)
    scaled = alpha * (weight.T if transposed else weight)
    weight = call.weight(1, transposed) if alpha == 1 else call.array("weight", scaled)
    inputs = [weight]
    if call.has(2):
        bias = np.broadcast_to(call.constant(2) * np.float32(call.get("beta", 1.0)), (1, weight.shape[0]))
        inputs.append(call.array("bias", bias[0]))
    return call.emit("FullyConnected", x, *inputs, num_hidden=weight.shape[0], no_bias=not call.has(2), flatten=True)


@translation("MatMul")
def _matmul(call: Call) -> Value:
    """A product with a matrix is a dense layer along the last axis; two tensors give a product for each image."""
    x, y = call.tensor(), call.inputs[1]
    if isinstance(y, np.ndarray):
        weight = call.weight(1, transposed=True)
        return call.emit("FullyConnected", x, weight, num_hidden=weight.shape[0], no_bias=True, flatten=False)
    if x.shape[:-2] != y.shape[:-2] or len(x.shape) < 3:
        raise ValueError(f"it multiplies {x.shape} by {y.shape}, which are not equally many matrices")
    return call.emit("batch_dot" if len(x.shape) == 3 else "_linalg_gemm2", x, y)


@translation("BatchNormalization")
def _batch_norm(call: Call) -> Value:
    if call.get("training_mode", 0):
        raise ValueError("it was exported in training mode; call eval() before exporting")
    if len(call.tensor().shape) < 2:
        raise ValueError("its input has no channels")
    roles = ("gamma", "beta", "running_mean", "running_var")
    arrays = [call.array(role, call.constant(k)) for k, role in enumerate(roles, 1)]
    return call.emit("BatchNorm", call.tensor(), *arrays, eps=call.get("epsilon", 1e-5), fix_gamma=False)


@translation("InstanceNormalization")
def _instance_norm(call: Call) -> Value:
    arrays = call.array("gamma", call.constant(1)), call.array("beta", call.constant(2))
    return call.emit("InstanceNorm", call.tensor(), *arrays, eps=call.get("epsilon", 1e-5))


@translation("LayerNormalization")
def _layer_norm(call: Call) -> Value:
    axis, rank = call.axis(-1), len(call.tensor().shape)
    if axis != rank - 1 or len(call.node.output) > 1:
        raise ValueError("it normalises over more than the last axis, or outputs its statistics")
    gamma = call.constant(1)
    beta = call.constant(2) if call.has(2) else np.zeros_like(gamma)
    arrays = call.array("gamma", gamma), call.array("beta", beta)
    return call.emit("LayerNorm", call.tensor(), *arrays, axis=-1, eps=call.get("epsilon", 1e-5))


@translation("LRN")
def _lrn(call: Call) -> Value:
    if call.get("size") < 1:
        raise ValueError("it sums over no channels")
    attrs = {"alpha": call.get("alpha", 1e-4), "beta": call.get("beta", 0.75), "knorm": call.get("bias", 1.0)}
    return call.emit("LRN", call.tensor(), nsize=call.get("size"), **attrs)


# ---- pooling and resampling -----------------------------------------------------------------------------------------


@translation("MaxPool", "AveragePool")
def _pool(call: Call) -> Value:
    """ONNX leaves out a window that would begin beyond the image and MXNet does not, which then rounds down.

    An axis along which ONNX rounds up nevertheless is padded before the pooling layer.
    """
    x, kernel, kind = call.tensor(), call.get("kernel_shape"), call.node.op_type[:3].lower()
    window, begin, end = _window(call, x, kernel)
    if any(d != 1 for d in window.pop("dilate")) or len(call.node.output) > 1:
        raise ValueError("its windows are dilated, or it outputs the positions of its values")
    counted = bool(call.get("count_include_pad", 0))
    border = ZEROS if kind == "ave" else {"mode": "constant", "constant_value": LOWEST}
    ceil = bool(call.get("ceil_mode", 0))
    if begin != end and kind == "ave" and not counted:
        raise ValueError("it excludes padding that differs between the two ends from its averages")
    x, pad = _even(call, x, begin, end, **border)
    if ceil:
        spans = list(zip(x.shape[2:], kernel, window["stride"], pad))
        last = [-(-(size + 2 * p - k) // s) * s for size, k, s, p in spans]  # where the last window begins
        beyond = [at >= size + p for at, (size, _, _, p) in zip(last, spans)]
        if any(beyond):
            ceil = False
            ends = [at + k - (size + 2 * p) for at, (size, k, _, p) in zip(last, spans)]
            more = [0 if left_out else end for left_out, end in zip(beyond, ends)]
            if any(more) and kind == "ave":
                raise ValueError("its windows reach beyond the border along one axis but not along another")
            x = call.padded(x, [0] * len(more), more, **border)
    names = {"ave": "avg", "max": "max"}
    how = {"pool_type": names[kind], "pooling_convention": "full" if ceil else "valid"}
    if kind == "ave":
        how["count_include_pad"] = counted
    return call.emit("Pooling", x, **window, pad=pad, **how)


@translation("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(call: Call) -> Value:
    kind = "avg" if "Average" in call.node.op_type else "max"
    return _pooled(call, call.tensor(), kind)


def _pooled(call: Call, x: Value, kind: str) -> Value:
    ones = (1,) * (len(x.shape) - 2)
    return call.emit("Pooling", x, global_pool=True, kernel=ones, pool_type=kind)


@translation("Resize", "Upsample")
def _resize(call: Call) -> Value:
    x, old = call.tensor(), call.node.op_type == "Upsample" or call.builder.opset < 11
    scales, sizes = call.get("scales", None, 1 if old else 2), call.get("sizes", None, 3)
    mode, place = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    place, rounding = ("asymmetric", "floor") if old else (place, call.get("nearest_mode", "round_prefer_floor"))
    if sizes is None:
        exact = np.float32(x.shape) * np.float32(scales)
        sizes = np.floor(exact).astype(int).tolist()
        # ONNX places pixels by the scale that the file states, MXNet by the ratio of the sizes.
        if place != "align_corners" and sizes != exact.tolist():
            stated = ", ".join(f"{scale:g}" for scale in scales)
            fix = "export it with sizes, and compare by scripts/convert.py --check"
            raise ValueError(f"its scales {stated} make no whole number of pixels of {x.shape}; {fix}")
    special = call.get("antialias", 0) or {"axes", "keep_aspect_ratio_policy"} & set(call.attributes)
    if tuple(sizes[:2]) != x.shape[:2] or len(x.shape) != 4 or special:
        raise ValueError("it resizes something other than the height and width of images")
    if tuple(sizes) == x.shape:
        return x
    halves = ("half_pixel", "pytorch_half_pixel")
    factor = sizes[2] // x.shape[2]
    by_factor = [(place, rounding) == ("asymmetric", "floor"), place in halves and rounding.startswith("round")]
    if mode == "nearest" and any(by_factor) and tuple(sizes[2:]) == tuple(factor * size for size in x.shape[2:]):
        return call.emit("UpSampling", x, scale=factor, sample_type="nearest", num_args=1)
    # A single pixel: ONNX's `half_pixel` takes it from the middle, MXNet, like `pytorch_half_pixel`, from the corner.
    cornered = place == "half_pixel" and any(new == 1 < size for new, size in zip(sizes[2:], x.shape[2:]))
    if mode == "linear" and place in (*halves, "align_corners") and not cornered:
        how = {"height": sizes[2], "width": sizes[3], "align_corners": place == "align_corners"}
        return call.emit("_contrib_BilinearResize2D", x, **how)
    raise ValueError(f"MXNet cannot resize with mode '{mode}' ({place}, {rounding}) from {x.shape} to {sizes}")


@translation("Pad")
def _pad(call: Call) -> Value:
    x, pads, mode = call.tensor(), call.get("pads", None, 1), call.get("mode", "constant")
    axes = [range(len(x.shape))[a] for a in call.get("axes", range(len(x.shape)), 3)]
    ends = np.zeros((2, len(x.shape)), int)
    ends[:, axes] = np.reshape(pads, (2, -1))
    value = float(np.ravel(call.get("value", 0.0, 2))[0])
    how = {"mode": mode} if mode != "constant" else {"mode": mode, "constant_value": value}
    return call.padded(x, *ends.tolist(), **how)


# ---- elementwise functions ------------------------------------------------------------------------------------------

POINTWISE = {
    "Relu": ("Activation", {"act_type": "relu"}),
    "Sigmoid": ("Activation", {"act_type": "sigmoid"}),
    "Tanh": ("Activation", {"act_type": "tanh"}),
    "Softplus": ("Activation", {"act_type": "softrelu"}),
    "Softsign": ("Activation", {"act_type": "softsign"}),
    "Exp": ("exp", {}),
    "Log": ("log", {}),
    "Sqrt": ("sqrt", {}),
    "Abs": ("abs", {}),
    "Neg": ("negative", {}),
    "Erf": ("erf", {}),
    "Reciprocal": ("_power_scalar", {"scalar": -1.0}),
}


@translation(*POINTWISE)
def _pointwise(call: Call) -> Value:
    op, attrs = POINTWISE[call.node.op_type]
    return call.emit(op, call.tensor(), **attrs)


@translation("Identity", "Dropout")
def _identity(call: Call) -> Value:
    return call.tensor()


@translation("Cast", "CastLike")
def _cast(call: Call) -> Operand:
    """Conversions between floating-point types are dropped, because everything is computed in one type."""
    if call.node.op_type == "Cast" and call.get("to") not in onnx_files.floats():
        raise ValueError("it converts values that depend on the images to integers")
    return call.inputs[0]


@translation("Clip")
def _clip(call: Call) -> Value:
    low, high = (float(np.ravel(call.get(key, end, k))[0]) for key, end, k in (("min", LOWEST, 1), ("max", HIGHEST, 2)))
    return call.emit("clip", call.tensor(), a_min=max(low, LOWEST), a_max=min(high, HIGHEST))


SELU = 1.6732632423543772, 1.0507009873554805  # alpha and gamma as MXNet has them


@translation("LeakyRelu", "Elu", "Selu", "PRelu")
def _leaky(call: Call) -> Value:
    kind = call.node.op_type.lower().replace("leakyrelu", "leaky")
    if kind == "prelu":
        slope = call.constant(1)
        rank = len(call.tensor().shape)
        shape = (1,) * (rank - slope.ndim) + slope.shape
        if slope.size > 1 and (rank < 2 or slope.size != shape[1]):
            raise ValueError(f"its slopes, of shape {slope.shape}, vary along another axis than that of the channels")
        return call.emit("LeakyReLU", call.tensor(), call.array("slope", slope.reshape(-1)), act_type=kind)
    if kind == "selu":
        if not np.allclose([call.get("alpha", SELU[0]), call.get("gamma", SELU[1])], SELU, rtol=1e-6, atol=0):
            raise ValueError("its constants are not those of the publication")
        return call.emit("LeakyReLU", call.tensor(), act_type=kind)
    default = {"leaky": 0.01, "elu": 1.0}[kind]
    return call.emit("LeakyReLU", call.tensor(), act_type=kind, slope=call.get("alpha", default))


@translation("HardSigmoid")
def _hard_sigmoid(call: Call) -> Value:
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    return call.emit("hard_sigmoid", call.tensor(), alpha=alpha, beta=beta)


@translation("HardSwish")
def _hard_swish(call: Call) -> Value:
    """x clip(x + 3, 0, 6) / 6."""
    shifted = call.emit("_plus_scalar", call.tensor(), scalar=3.0)
    gate = call.emit("_div_scalar", call.emit("clip", shifted, a_min=0.0, a_max=6.0), scalar=6.0)
    return call.emit("elemwise_mul", call.tensor(), gate)


@translation("Mish")
def _mish(call: Call) -> Value:
    """x tanh(log(1 + exp(x)))."""
    positive = call.emit("Activation", call.tensor(), act_type="softrelu")
    return call.emit("elemwise_mul", call.tensor(), call.emit("Activation", positive, act_type="tanh"))


@translation("Gelu")
def _gelu(call: Call) -> Value:
    if call.get("approximate", "none") != "none":
        raise ValueError("it is approximated by tanh; export it as separate operators (opset 18)")
    return call.emit("LeakyReLU", call.tensor(), act_type="gelu")


@translation("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Value:
    axis = call.axis(-1 if call.builder.opset >= 13 else 1)
    if axis == call.tensor().batch:
        raise ValueError("it combines the images of a batch")
    if call.builder.opset < 13 and math.prod(call.tensor().shape[axis + 1 :]) > 1:
        raise ValueError("before opset 13 it sums over several axes; export with a newer opset")
    return call.emit("softmax" if call.node.op_type == "Softmax" else "log_softmax", call.tensor(), axis=axis)


# ---- several tensors ------------------------------------------------------------------------------------------------

BINARY = {  # for equal shapes, for any shapes, with a number on the right, with a number on the left
    "Add": ("elemwise_add", "broadcast_add", "_plus_scalar", "_plus_scalar"),
    "Sum": ("elemwise_add", "broadcast_add", "_plus_scalar", "_plus_scalar"),
    "Sub": ("elemwise_sub", "broadcast_sub", "_minus_scalar", "_rminus_scalar"),
    "Mul": ("elemwise_mul", "broadcast_mul", "_mul_scalar", "_mul_scalar"),
    "Div": ("elemwise_div", "broadcast_div", "_div_scalar", "_rdiv_scalar"),
    "Pow": ("broadcast_power", "broadcast_power", "_power_scalar", "_rpower_scalar"),
    "Max": ("broadcast_maximum", "broadcast_maximum", "_maximum_scalar", "_maximum_scalar"),
    "Min": ("broadcast_minimum", "broadcast_minimum", "_minimum_scalar", "_minimum_scalar"),
}


@translation(*BINARY)
def _binary(call: Call) -> Operand:
    inputs = call.inputs
    if call.node.op_type in ("Sum", "Max", "Min"):  # of any number, in any order: first what depends on the image
        inputs = sorted(inputs, key=lambda x: isinstance(x, np.ndarray))
    elif len(inputs) != 2:
        raise ValueError(f"it has {len(inputs)} inputs")
    found, *operands = inputs
    for other in operands:
        found = _combined(call, found, other)
    return found


def _combined(call: Call, x: Operand, y: Operand) -> Operand:
    """The operation on two operands, of which at least one depends on the image."""
    same, broadcast, behind, ahead = BINARY[call.node.op_type]
    tensor = x if isinstance(x, Value) else y
    for constant, op in ((y, behind), (x, ahead)):
        if isinstance(constant, np.ndarray) and constant.size == 1 and constant.ndim <= len(tensor.shape):
            return call.emit(op, tensor, scalar=float(constant.reshape(-1)[0]))
    rank = len(tensor.shape)
    if isinstance(y, np.ndarray) and call.node.op_type == "Div":
        y, broadcast = np.float32(1) / y, "broadcast_mul"  # a scale, through which channels can be followed
    # Arrays get all the axes; between tensors of different ranks, MXNet would mix up batch and channels.
    x, y = (o if isinstance(o, Value) else o.reshape((1,) * (rank - o.ndim) + o.shape) for o in (x, y))
    if any(isinstance(o, np.ndarray) and (o.ndim > rank or o.shape[tensor.batch] > 1) for o in (x, y)):
        raise ValueError("it adds axes, or combines each image with several arrays")
    if isinstance(x, Value) and isinstance(y, Value):
        if len(x.shape) != len(y.shape):
            raise ValueError(f"its inputs have different numbers of axes: {x.shape}, {y.shape}")
        return call.emit(same if x.shape == y.shape else broadcast, x, y)
    return call.emit(broadcast, x, y)


@translation("Concat")
def _concat(call: Call) -> Value:
    tensor = next(x for x in call.inputs if isinstance(x, Value))
    axis = range(len(tensor.shape))[call.get("axis")]
    if any(axis == x.batch for x in call.inputs if isinstance(x, Value)):
        raise ValueError("it concatenates along the batch axis")
    # A constant, such as the class token of a transformer, is repeated for each image.
    each = {"lhs_axes": (0,), "rhs_axes": (0,)}
    parts = [x if isinstance(x, Value) else call.emit("broadcast_like", x, tensor, **each) for x in call.inputs]
    return call.emit("Concat", *parts, dim=axis, num_args=len(parts))


# ---- rearranging values ---------------------------------------------------------------------------------------------


@translation("Reshape")
def _reshape(call: Call) -> Value:
    x, shape = call.tensor(), list(call.get("shape", None, 1))
    if not call.get("allowzero", 0):
        shape = [x.shape[k] if d == 0 else d for k, d in enumerate(shape)]
    known = -math.prod(shape) if -1 in shape else 1
    return call.reshape(x, [math.prod(x.shape) // known if d == -1 else d for d in shape])


@translation("Flatten")
def _flatten(call: Call) -> Value:
    x, axis = call.tensor(), call.axis(1)
    if axis == 1:
        return call.emit("Flatten", x)
    return call.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@translation("Squeeze")
def _squeeze(call: Call) -> Value:
    x = call.tensor()
    ones = [k for k, d in enumerate(x.shape) if d == 1 and k != x.batch]
    axes = [range(len(x.shape))[a] for a in np.atleast_1d(call.get("axes", ones, 1))]
    return _without_axes(call, x, axes)


def _without_axes(call: Call, x: Value, axes: Sequence[int]) -> Value:
    if x.batch in axes or any(x.shape[a] != 1 for a in axes):
        raise ValueError(f"it removes the axes {list(axes)} from {x.shape}")
    batch = x.batch - sum(a < x.batch for a in axes)
    return call.reshape(x, [d for k, d in enumerate(x.shape) if k not in axes], batch)


@translation("Unsqueeze")
def _unsqueeze(call: Call) -> Value:
    x, given = call.tensor(), np.atleast_1d(call.get("axes", None, 1))
    rank = len(x.shape) + len(given)
    axes, rest = {range(rank)[a] for a in given}, iter(x.shape)
    batch = [k for k in range(rank) if k not in axes][x.batch]
    return call.reshape(x, [1 if k in axes else next(rest) for k in range(rank)], batch)


@translation("Transpose")
def _transpose(call: Call) -> Value:
    axes = tuple(call.get("perm", range(len(call.tensor().shape))[::-1]))
    return call.emit("transpose", call.tensor(), axes=axes)._replace(batch=axes.index(call.tensor().batch))


@translation("DepthToSpace")
def _depth_to_space(call: Call) -> Value:
    (n, c, h, w), b = call.tensor().shape, call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        split, order = (n, b, b, c // b**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (n, c // b**2, b, b, h, w), (0, 1, 4, 2, 5, 3)
    moved = call.emit("transpose", call.reshape(call.tensor(), split), axes=order)
    return call.reshape(moved, (n, c // b**2, h * b, w * b))


@translation("SpaceToDepth")
def _space_to_depth(call: Call) -> Value:
    (n, c, h, w), b = call.tensor().shape, call.get("blocksize")
    split = call.reshape(call.tensor(), (n, c, h // b, b, w // b, b))
    return call.reshape(call.emit("transpose", split, axes=(0, 3, 5, 1, 2, 4)), (n, c * b**2, h // b, w // b))


@translation("Expand")
def _expand(call: Call) -> Value:
    x, wanted = call.tensor(), tuple(call.constant(1).tolist())
    shape = np.broadcast_shapes(x.shape, wanted)
    if len(shape) != len(x.shape) or shape[0] != x.shape[0]:
        raise ValueError(f"it expands {x.shape} to {shape}, along new axes or along the batch")
    return x if shape == x.shape else call.emit("broadcast_to", x, shape=(0, *shape[1:]))


@translation("Split")
def _split(call: Call) -> List[Value]:
    x, axis, n = call.tensor(), call.axis(0), len(call.node.output)
    even = -(-x.shape[axis] // n)
    return _parts(call, x, axis, call.get("split", [*[even] * (n - 1), x.shape[axis] - even * (n - 1)], 1))


def _parts(call: Call, x: Value, axis: int, sizes: Sequence[int]) -> List[Value]:
    """The tensor split into parts of these sizes along an axis."""
    n = len(sizes)
    if axis == x.batch or sum(sizes) != x.shape[axis] or min(sizes) < 1:
        raise ValueError(f"it splits axis {axis} of {x.shape} into {sizes}")
    if n == 1:
        return [x]
    if len(set(sizes)) == 1:
        return call.emit("SliceChannel", x, n=n, axis=axis, num_outputs=n)
    ends = np.cumsum([0, *sizes]).tolist()
    return [call.emit("slice_axis", x, axis=axis, begin=b, end=e) for b, e in zip(ends, ends[1:])]


@translation("SplitToSequence")
def _split_to_sequence(call: Call) -> Parts:
    x, axis, sizes = call.tensor(), call.axis(0), call.constant(1)
    if not sizes.ndim:  # one size for all parts but the last
        sizes = np.diff([*range(0, x.shape[axis], int(sizes)), x.shape[axis]])
    return Parts(_parts(call, x, axis, sizes.tolist()))


@translation("SequenceAt")
def _sequence_at(call: Call) -> Value:
    return call.inputs[0].values[int(call.constant(1))]


@translation("Slice")
def _slice(call: Call) -> Value:
    x, starts, ends = call.tensor(), call.get("starts", None, 1), call.get("ends", None, 2)
    axes, steps = call.get("axes", range(len(starts)), 3), call.get("steps", [1] * len(starts), 4)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        axis = range(len(x.shape))[axis]
        begin, stop, step = slice(start, end, step).indices(x.shape[axis])
        if (begin, stop, step) == (0, x.shape[axis], 1):
            continue
        if axis == x.batch or step < 1:
            raise ValueError("it selects some images of a batch, or goes backwards")
        if step == 1:
            x = call.emit("slice_axis", x, axis=axis, begin=begin, end=stop)
        else:
            none = (None,) * axis
            x = call.emit("slice", x, begin=(*none, begin), end=(*none, stop), step=(*none, step))
    return x


@translation("Gather")
def _gather(call: Call) -> Value:
    x, axis, at = call.tensor(), call.axis(0), call.constant(1)
    places = [range(x.shape[axis])[k] for k in at.reshape(-1).tolist()]
    if axis == x.batch or at.ndim > 1:
        raise ValueError("it selects some images of a batch, or adds axes")
    if places == list(range(places[0], places[0] + len(places))):
        part = call.emit("slice_axis", x, axis=axis, begin=places[0], end=places[-1] + 1)
    else:
        part = call.emit("take", x, np.array(places, np.float32), axis=axis)
    return part if at.ndim else _without_axes(call, part, [axis])


# ---- reductions over axes -------------------------------------------------------------------------------------------


def _reduced(call: Call, op: str, x: Value) -> Value:
    """Reduce over the axes that the node names; over all positions of an image, by a pooling, which is faster."""
    rank, keep = len(x.shape), bool(call.get("keepdims", 1))
    axes = sorted({range(rank)[a] for a in np.atleast_1d(call.get("axes", range(rank), 1))})
    if x.batch in axes:
        raise ValueError("it combines the images of a batch")
    if not keep and min(axes) < x.batch:
        raise ValueError("it reduces an axis before the batch axis")
    if op in ("mean", "max") and rank > 3 and axes == list(range(2, rank)):
        pooled = _pooled(call, x, "avg" if op == "mean" else "max")
        return pooled if keep else call.reshape(pooled, x.shape[:2])
    return call.emit(op, x, axis=tuple(axes), keepdims=keep)


@translation("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(call: Call) -> Value:
    return _reduced(call, call.node.op_type[len("Reduce") :].lower(), call.tensor())


@translation("ReduceL2")
def _norm(call: Call) -> Value:
    """The square root of the sum of squares."""
    return call.emit("sqrt", _reduced(call, "sum", call.emit("square", call.tensor())))
