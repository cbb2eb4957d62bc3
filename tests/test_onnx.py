"""ONNX files as networks: PyTorch's own outputs, onnxruntime for each operator, and files that are wrong."""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path

import mxnet as mx
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gcp.backend import onnx_files, onnx_import, zoo
from gcp.backend.blocks import predict
from gcp.errors import UserError
from gcp.experiment import config
from gcp.experiment.zoo import tried
from gcp.graph.surgery import shrink, silence

GOLDEN = Path(__file__).parent / "golden" / "onnx"
EXPECTED = np.load(GOLDEN / "outputs.npz")


def numbers(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def write(path, nodes, arrays=None, shape=("n", 4, 6, 6), outputs=("y",), opset=20, inputs=("x",), kind=None):
    """A file of these nodes; `arrays` are its initialisers."""
    floats = TensorProto.FLOAT if kind is None else kind
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, floats, shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (arrays or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return str(path)


def runtime(path, x):
    """The file's output in onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


# ---- files of PyTorch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if "shufflenet" in n else ()) for n in EXPECTED.files]
)
def test_outputs_are_those_of_pytorch_and_silenced_is_removed(name):
    path = str(GOLDEN / f"{name}.onnx")
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    found = predict(zoo.open_network(path), images)
    assert np.abs(found - EXPECTED[name]).max() < 1e-5 * np.abs(EXPECTED[name]).max()
    trial = tried(path)
    assert trial.difference < 1e-5 and trial.share > 0.6, trial.said


def test_golden_files_are_small_and_cover_batch_norms_that_are_kept_folded_and_missing():
    sizes = {path.stem: path.stat().st_size for path in GOLDEN.glob("*.onnx")}
    assert set(sizes) == set(EXPECTED.files) and len(sizes) >= 12
    assert max(sizes.values()) < 2**20 and sum(sizes.values()) < 3 * 2**20
    norms = {name: sum(node.op == "BatchNorm" for node in zoo.open_network(str(GOLDEN / f"{name}.onnx")).nodes)
             for name in ("resnet", "resnet_folded", "plain")}  # fmt: skip
    assert norms == {"resnet": 7, "resnet_folded": 0, "plain": 0}


def test_layers_and_arrays_are_called_as_pytorch_calls_them():
    net = zoo.open_network(str(GOLDEN / "resnet.onnx"))
    assert {"features.0.0_weight", "features.0.1_gamma", "features.2.shortcut.1_running_var", "fc_bias"} <= set(
        net.arrays
    )
    assert [g.name for g in net.groups][:2] == ["features.0.0", "features.1.body.0.0"]
    assert net.name == "resnet" and net.n_classes == 10


# ---- operators ------------------------------------------------------------------------------------------------------

FLOOR = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
X = ("n", 4, 6, 6)
WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2]}
OPERATORS = {  # operator and what sets it apart -> attributes, constant inputs, shape of the image
    "Conv uneven borders": ({"pads": [0, 1, 2, 1]}, [numbers(5, 4, 3, 3), numbers(5)], X),
    "Conv same upper": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [numbers(5, 4, 3, 3)], X),
    "Conv same lower": ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [numbers(5, 4, 3, 3)], X),
    "Conv groups and dilation": ({"group": 2, "dilations": [2, 2]}, [numbers(6, 2, 3, 3)], X),
    "ConvTranspose": ({"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}, [numbers(4, 3, 3, 3)], X),
    "BatchNormalization": ({"epsilon": 1e-3}, [numbers(4), numbers(4), numbers(4), np.abs(numbers(4))], X),
    "InstanceNormalization": ({}, [numbers(4), numbers(4)], X),
    "LayerNormalization": ({"axis": -1}, [numbers(6), numbers(6)], X),
    "LRN": ({"size": 3}, [], X),
    "MaxPool rounding up": ({**WINDOW, "ceil_mode": 1, "pads": [0] * 4}, [], X),
    "MaxPool rounding up into the border": ({**WINDOW, "kernel_shape": [2, 2], "ceil_mode": 1, "pads": [1] * 4}, [],
                                            ("n", 4, 7, 7)),
    "MaxPool uneven borders": ({**WINDOW, "pads": [0, 0, 1, 1]}, [], X),
    "AveragePool without border": ({**WINDOW, "pads": [1] * 4}, [], X),
    "MaxPool rounding up along one axis": ({"kernel_shape": [3, 3], "strides": [3, 3], "ceil_mode": 1, "pads": [1] * 4},
                                           [], ("n", 4, 5, 6)),
    "AveragePool rounding up": ({**WINDOW, "pads": [1] * 4, "ceil_mode": 1}, [], ("n", 4, 6, 6)),
    "AveragePool rounding up, with border": ({**WINDOW, "pads": [1] * 4, "ceil_mode": 1, "count_include_pad": 1}, [],
                                             ("n", 4, 6, 6)),
    "AveragePool with border": ({**WINDOW, "pads": [0, 0, 1, 1], "count_include_pad": 1}, [], X),
    "GlobalAveragePool": ({}, [], X),
    "GlobalMaxPool": ({}, [], X),
    "Resize nearest": (
        FLOOR,
        [None, np.array([1, 1, 2, 2], np.float32)],
        X,
    ),
    "Resize linear": ({"mode": "linear"}, [None, np.array([1, 1, 1.5, 2], np.float32)], X),
    "Resize linear by corners": (
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        [None, np.array([1, 1, 1.55, 2], np.float32)], X
    ),
    "Resize linear to one pixel": (
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        [None, np.array([1, 1, 1 / 6, 1 / 2], np.float32)], X
    ),
    "Resize linear by thirds": ({"mode": "linear"}, [None, np.array([1, 1, 7 / 6, 1 / 3], np.float32)], X),
    "Pad reflected": ({"mode": "reflect"}, [np.array([0, 0, 1, 2, 0, 0, 2, 1])], X),
    "Pad with a number, and cut": ({}, [np.array([0, 0, -1, 2, 0, 0, 2, -1]), np.float32(1.5)], X),
    "Pad of three axes": ({}, [np.array([0, 0, 1, 0, 1, 2])], ("n", 4, 1, 6)),
    "Pad of two axes": ({}, [np.array([0, 1, 0, 2])], ("n", 4, 1, 1)),
    "Pad of the channels": ({}, [np.array([0, 2, 0, 0, 0, 1, 1, 0])], X),
    "Pad of the last axes": ({}, [np.array([1, 2]), None, np.array([-1])], X),
    "Gemm": ({"alpha": 0.5, "beta": 2.0, "transB": 1}, [numbers(5, 4), numbers(5)], ("n", 4, 1, 1)),
    "Gemm not transposed": ({}, [numbers(4, 5), numbers(1)], ("n", 4, 1, 1)),
    "MatMul": ({}, [numbers(6, 3)], X),
    **{op: ({}, [], X) for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Exp", "Abs", "Neg", "Erf",
                                  "HardSwish", "HardSigmoid", "Elu", "Selu", "LeakyRelu", "Mish", "Gelu", "Reciprocal",
                                  "Identity", "Dropout", "Flatten")},
    "Selu spelt out": ({"alpha": 1.6732632, "gamma": 1.0507010}, [], X),
    "Clip": ({}, [np.float32(-0.5)], X),
    "Clip above": ({}, [None, np.float32(0.5)], X),
    "PRelu": ({}, [numbers(4, 1, 1)], X),
    "Softmax": ({"axis": 1}, [], X),
    "LogSoftmax": ({}, [], X),
    "Add a number": ({}, [np.float32(2)], X),
    "Sub an array": ({}, [numbers(4, 1, 1)], X),
    "Mul an array": ({}, [numbers(4, 6, 6)], X),
    "Div by an array": ({}, [numbers(4, 1, 1) + 3], X),
    "Pow": ({}, [np.float32(2)], X),
    "Max": ({}, [np.float32(0.1)], X),
    "Min": ({}, [numbers(4, 1, 1)], X),
    "Reshape": ({}, [np.array([0, 2, -1, 6, 6])], X),
    "Transpose": ({"perm": [0, 2, 3, 1]}, [], X),
    "Unsqueeze": ({}, [np.array([2, -1])], X),
    "Squeeze": ({}, [np.array([2, 3])], ("n", 4, 1, 1)),
    "DepthToSpace": ({"blocksize": 2}, [], X),
    "DepthToSpace by columns": ({"blocksize": 2, "mode": "CRD"}, [], X),
    "SpaceToDepth": ({"blocksize": 2}, [], X),
    "Expand": ({}, [np.array([1, 4, 6, 5])], ("n", 4, 6, 1)),
    "Slice": ({}, [np.array([1, -4]), np.array([4, 2**62]), np.array([1, 3])], X),
    "Slice with steps": ({}, [np.array([1, 0]), np.array([6, 6]), np.array([2, 3]), np.array([2, 3])], X),
    "Gather one": ({"axis": 1}, [np.array(-1)], X),
    "Gather some": ({"axis": 1}, [np.array([3, 0, 1])], X),
    "ReduceMean": ({}, [np.array([2, 3])], X),
    "ReduceMean without axes": ({"keepdims": 0}, [np.array([-1, -2])], X),
    "ReduceSum": ({"keepdims": 0}, [np.array([1])], X),
    "ReduceMax": ({}, [np.array([1])], X),
    "ReduceL2": ({}, [np.array([1, 2])], X),
}  # fmt: skip


@pytest.mark.parametrize("case", OPERATORS)
def test_operator_is_as_in_onnx(case, tmp_path):
    """A batch of two, although the file is read for one."""
    attributes, constants, shape = OPERATORS[case]
    op = case.split()[0]
    names = [f"c{k}" if value is not None else "" for k, value in enumerate(constants)]
    flat = [helper.make_node("Flatten", ["x"], ["f"])] if op == "Gemm" or "two axes" in case else []
    if "three axes" in case:
        flat = [helper.make_node("Squeeze", ["x", "two"], ["f"])]
    node = helper.make_node(op, ["f" if flat else "x", *names], ["y"], name="tested", **attributes)
    arrays = {"two": [2], **{name: value for name, value in zip(names, constants) if name}}
    path = write(tmp_path / "net.onnx", [*flat, node], arrays, shape)
    x = numbers(2, *shape[1:])
    expected = runtime(path, x)
    net = zoo.open_network(path, shape[1:])
    found = predict(net, x)
    assert found.shape == expected.shape == (2, *net.shapes[net.outputs[0][0]][0][1:])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [None, [1, 3], [2, 2]])
def test_split_and_concat(sizes, tmp_path):
    nodes = [
        helper.make_node("Split", ["x"] + (["s"] if sizes else []), ["a", "b"], axis=1,
                         **({} if sizes else {"num_outputs": 2})),
        helper.make_node("Sub", ["b", "one"], ["c"]),
        helper.make_node("Concat", ["c", "a"], ["y"], axis=-3),
    ]  # fmt: skip
    path = write(tmp_path / "n.onnx", nodes, {"one": np.float32(1), **({"s": np.array(sizes)} if sizes else {})})
    x = numbers(2, 4, 6, 6)
    np.testing.assert_allclose(predict(zoo.open_network(path), x), runtime(path, x))


@pytest.mark.parametrize("op", ["Sum", "Max"])
def test_two_arrays_ahead_of_the_image_are_read(op, tmp_path):
    arrays = {"a": numbers(4, 1, 1), "b": numbers(4, 6, 1)}
    path = write(tmp_path / "net.onnx", [helper.make_node(op, ["a", "b", "x"], ["y"])], arrays)
    x = numbers(2, 4, 6, 6)
    np.testing.assert_allclose(predict(zoo.open_network(path), x), runtime(path, x), rtol=1e-5, atol=1e-6)


def test_an_array_beside_a_tensor_is_repeated_for_each_image(tmp_path):
    """As the class token of a transformer is, whose length along the batch is folded into 1."""
    tokens = helper.make_node("Concat", ["c", "x"], ["y"], axis=2)
    path = write(tmp_path / "net.onnx", [tokens], {"c": numbers(1, 4, 1, 6)})
    x = numbers(2, 4, 6, 6)
    expected = np.concatenate([runtime(path, image[None]) for image in x])
    np.testing.assert_array_equal(predict(zoo.open_network(path), x), expected)


def test_shape_arithmetic_is_folded(tmp_path):
    """What PyTorch's exporter writes for x.view(x.shape[0], x.shape[1] // 2, -1)."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["batch"]),
        helper.make_node("Gather", ["s", "one"], ["channels"]),
        helper.make_node("Constant", [], ["two"], value_ints=[2]),
        helper.make_node("Div", ["channels", "two"], ["half"]),
        helper.make_node("Concat", ["batch", "half", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    path = write(tmp_path / "n.onnx", nodes, {"zero": [0], "one": [1], "rest": [-1]})
    net, x = zoo.open_network(path), numbers(3, 4, 6, 6)
    np.testing.assert_array_equal(predict(net, x), x.reshape(3, 2, -1))
    assert [node.op for node in net.nodes] == ["null", "Reshape"]


def test_the_batch_is_followed_where_attention_puts_another_axis_first(tmp_path):
    """Queries and keys taken apart along an axis ahead of the batch, as timm's attention does."""
    nodes = [
        helper.make_node("Reshape", ["x", "split"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0, 3, 2]),
        helper.make_node("Split", ["b"], ["c", "d"], axis=0, num_outputs=2),
        helper.make_node("Squeeze", ["c", "first"], ["q"]),
        helper.make_node("Gather", ["b", "one"], ["k"], axis=0),
        helper.make_node("Transpose", ["k"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "t"], ["y"]),
    ]
    path = write(tmp_path / "n.onnx", nodes, {"split": [1, 2, 2, 36], "first": [0], "one": np.int64(1)})
    net, x = zoo.open_network(path), numbers(3, 4, 6, 6)
    expected = np.concatenate([runtime(path, image[None]) for image in x])
    np.testing.assert_allclose(predict(net, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "node, arrays",
    [
        (helper.make_node("Softmax", ["x"], ["y"], axis=0), {}),
        (helper.make_node("ReduceMean", ["x", "a"], ["y"]), {"a": [0, 1]}),
        (helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0, 2, 3]), {}),
        (helper.make_node("Slice", ["x", "a", "b", "a"], ["y"]), {"a": [0], "b": [0]}),
        (helper.make_node("Concat", ["x", "x"], ["y"], axis=0), {}),
        (helper.make_node("Add", ["x", "a"], ["y"]), {"a": numbers(5, 4, 1, 1)}),
        (helper.make_node("Mul", ["a", "x"], ["y"]), {"a": numbers(1, 1, 4, 1, 1)}),
    ],
    ids=lambda value: getattr(value, "op_type", ""),
)
def test_what_joins_the_images_of_a_batch_is_refused(node, arrays, tmp_path):
    with pytest.raises(UserError) as raised:
        zoo.open_network(write(tmp_path / "n.onnx", [node], arrays))
    assert raised.value.key == "onnx.node"


def test_equal_initial_weights_are_arrays_of_their_own_and_shared_ones_stay_shared(tmp_path):
    """PyTorch stores equal arrays once, and names the others by Identity; a layer called twice has one weight."""
    ones = dict.fromkeys("gbmv", np.ones(4, np.float32))
    nodes = [
        helper.make_node("Identity", ["g"], ["g2"]),
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "g", "b", "m", "v"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["d"]),
        helper.make_node("BatchNormalization", ["d", "g2", "b", "m", "v"], ["y"]),
    ]
    net = zoo.open_network(write(tmp_path / "n.onnx", nodes, {"w": numbers(4, 4, 1, 1), **ones}))
    weights = [net.weight(node.name) for node in net.nodes if node.op == "Convolution"]
    norms = [net.norm_arrays(node.name) for node in net.nodes if node.op == "BatchNorm"]
    assert weights[0] == weights[1] and len({name for pair in norms for name in pair}) == 4


@pytest.mark.parametrize(
    "old, new, codes",
    [
        ((1, 8, 5, 5), (1, 2, 4, 5, 5), (0, -4, 2, -1, -2)),
        ((1, 8, 5, 5), (1, 4, 2, 5, 5), (0, -4, -1, 2, -2)),
        ((1, 2, 4, 5, 5), (1, 8, 5, 5), (0, -3, -2)),
        ((1, 8, 5, 5), (1, 200), (0, -1)),
        ((1, 8, 1, 1), (1, 8), (0, 0)),
        ((1, 8), (1, 8, 1, 1), (0, 0, 1, 1)),
        ((1, 8, 6, 6), (4, 8, 3, 3), (-1, 8, 3, 3)),
        ((1, 8, 6, 6), (1, 2, 4, 36), (0, 2, 4, 36)),
    ],
)
def test_reshapes_hold_for_any_batch(old, new, codes):
    assert onnx_import.reshape_codes(old, new) == codes
    x = np.arange(3 * math.prod(old), dtype=np.float32).reshape(3 * old[0], *old[1:])
    np.testing.assert_array_equal(mx.nd.array(x).reshape(codes).asnumpy(), x.reshape(3 * new[0], *new[1:]))


def test_a_product_in_which_no_channel_can_be_zero_pins_them(tmp_path):
    """Sigmoids of both factors: neither becomes zero, so the channels of both convolutions stay."""
    nodes = [
        *(helper.make_node("Conv", list(names[:2]), [names[2]]) for names in ("xtz", "zua", "zvb")),
        *(helper.make_node("Sigmoid", [a], [b]) for a, b in ("ac", "bd")),
        helper.make_node("Mul", ["c", "d"], ["e"]),
        helper.make_node("Conv", ["e", "w"], ["y"]),
    ]
    path = write(tmp_path / "n.onnx", nodes, {name: numbers(4, 4, 3, 3) for name in "tuvw"})
    net = zoo.open_network(path, (4, 9, 9))
    assert [g.producers for g in net.groups] == [(net.nodes[2].name,)]


# ---- inputs ---------------------------------------------------------------------------------------------------------

RELU = [helper.make_node("Relu", ["x"], ["y"], name="act")]


def test_a_free_size_has_to_be_given_and_another_one_can_be(tmp_path):
    free = write(tmp_path / "free.onnx", RELU, shape=("n", 3, "h", "w"))
    with pytest.raises(UserError, match=r"3x\?x\?.*--input") as raised:
        zoo.open_network(free)
    assert raised.value.key == "onnx.shape"
    assert zoo.open_network(free, (3, 8, 9)).input_shape == (3, 8, 9)
    fixed = write(tmp_path / "fixed.onnx", RELU, shape=(1, 3, 4, 4))
    assert zoo.open_network(fixed).input_shape == (3, 4, 4) and zoo.open_network(fixed, (3, 5, 5)).shapes[1] == (
        (1, 3, 5, 5),
    )
    with pytest.raises(UserError, match="3 channels, not 1"):
        zoo.open_network(fixed, (1, 4, 4))


def test_classes_are_those_of_the_file_or_of_a_new_output_layer():
    path = str(GOLDEN / "plain.onnx")
    with pytest.raises(UserError, match="10 classes, 4 are needed"):
        zoo.open_network(path, None, 4)
    net = zoo.open_network(path, None, 4, seed=1, new_head=True)
    assert net.n_classes == 4 and predict(net, numbers(2, 3, 32, 32)).shape == (2, 4)


# ---- what is wrong with files ---------------------------------------------------------------------------------------


def quantized(path):
    scale = {"s": np.float32(0.1), "z": np.int8(0)}
    write(path, [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                 helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])], scale)  # fmt: skip


def endless(path):
    body = helper.make_graph([], "b", [helper.make_tensor_value_info(n, TensorProto.BOOL, ()) for n in "ic"],
                             [helper.make_tensor_value_info("c", TensorProto.BOOL, ())])  # fmt: skip
    loop = helper.make_node("Loop", ["", "t"], [], body=body)
    write(path, [loop, *RELU], {"t": True})


def doubling(path):
    """A file of a few hundred bytes whose text doubles at every node."""
    cast = helper.make_node("Cast", ["c"], ["s0"], to=TensorProto.STRING)
    nodes = [helper.make_node("StringConcat", [f"s{k}", f"s{k}"], [f"s{k + 1}"]) for k in range(9)]
    write(path, [cast, *nodes, *RELU], {"c": [1234567]})


def wide(path):
    """A convolution of constants with a small result and a border of 10^9 zeros."""
    how = {"pads": [20000] * 4, "strides": [30000] * 2}
    convolution = helper.make_node("Conv", ["c", "c"], ["d"], **how)
    write(path, [convolution, *RELU], {"c": numbers(1, 1, 2, 2)})


def node(op, *inputs, **attributes):
    return [helper.make_node(op, ["x", *inputs], ["y"], name="n", **attributes)]


BAD = {  # what is wrong -> how to write it, the key, words of the message
    "empty": (lambda path: path.write_bytes(b""), "onnx.format", "no operators"),
    "junk": (lambda path: path.write_bytes(b"\xff" * 99), "onnx.format", "not a complete ONNX file"),
    "a folder": (lambda path: path.mkdir(), "file.kind", "is a folder"),
    "absent": (lambda path: None, "file.read", "No such file"),
    "old": (lambda path: write(path, RELU, opset=6), "onnx.content", "opset 6; only 7 to"),
    "new": (lambda path: write(path, RELU, opset=99), "onnx.content", "opset 99"),
    "int8": (quantized, "onnx.quantized", "QuantizeLinear"),
    "two inputs": (lambda path: write(path, RELU, inputs=("x", "z")), "onnx.inputs", r"2 \(x, z\)"),
    "a vector": (lambda path: write(path, RELU, shape=("n", 4)), "onnx.inputs", "2 axes"),
    "bytes": (lambda path: write(path, RELU, kind=TensorProto.UINT8), "onnx.inputs", "floating-point"),
    "a fixed batch": (lambda path: write(path, RELU, shape=(8, 3, 4, 4)), "onnx.batch", "batches of 8"),
    "an operator": (lambda path: write(path, node("Einsum", equation="abcd->abcd")), "onnx.operator", "'n' .Einsum."),
    "a domain": (lambda path: write(path, node("Relu", domain="my.own")), "onnx.operator", "'my.own.Relu'"),
    "a name": (lambda path: write(path, node("Add", "nowhere")), "onnx.node", "reads 'nowhere'"),
    "a shape": (lambda path: write(path, node("Conv", "w"), {"w": numbers(5, 3, 3, 3)}), "onnx.node", "'n' .Conv."),
    "an attribute": (lambda path: write(path, node("LeakyRelu", alpha="x")), "onnx.node", "'n' .LeakyRelu."),
    "no groups": (lambda path: write(path, node("Conv", "w", group=0), {"w": numbers(4, 4, 1, 1)}), "onnx.node", "gro"),
    "no stride": (lambda path: write(path, node("MaxPool", kernel_shape=[2], strides=[0])), "onnx.node", "stride"),
    "no kernel": (lambda path: write(path, node("MaxPool", kernel_shape=[2, -2])), "onnx.node", "kernel"),
    "training": (lambda path: write(path, node("BatchNormalization", *"gbmv", training_mode=1),
                                    dict.fromkeys("gbmv", numbers(4))), "onnx.node", r"eval\(\)"),
    "slopes of columns": (lambda path: write(path, node("PRelu", "s"), {"s": numbers(6)}, ("n", 6, 6, 6)), "onnx.node",
                          "another axis"),
    "slopes of rows": (lambda path: write(path, node("PRelu", "s"), {"s": numbers(6, 1)}, ("n", 6, 6, 6)), "onnx.node",
                       "another axis"),
    "a batch joined": (lambda path: write(path, node("ReduceMean", "a"), {"a": [0]}), "onnx.node", "images of a batch"),
    "a constant output": (lambda path: write(path, RELU, {"c": numbers(2)}, outputs=("c",)), "onnx.node", "depend"),
    "more than memory": (
        lambda path: write(path, [helper.make_node("ConstantOfShape", ["s"], ["c"], name="n"), *RELU],
                           {"s": [2**20, 2**20]}), "onnx.node", "does not fit in memory"),
    "a scale": (lambda path: write(path, node("Resize", "", "s", mode="linear"), {"s": np.float32([1, 1, 1.55, 2])}),
                "onnx.node", "'n' .Resize.*1.55.*--check"),
    "a factor": (lambda path: write(path, node("Resize", "", "s", **FLOOR), {"s": np.float32([1, 1, 2.1, 2])}),
                 "onnx.node", "'n' .Resize.*2.1.*--check"),
    "doubling text": (doubling, "onnx.node", "text"),
    "a wide border": (wide, "onnx.node", "constants"),
    "another selu": (lambda path: write(path, node("Selu", gamma=1.1)), "onnx.node", "constants"),
    "one pixel": (lambda path: write(path, node("Resize", "", "", "s", mode="linear"), {"s": [1, 4, 1, 3]}),
                  "onnx.node", "'n' .Resize.*half_pixel"),
    "an endless loop": (endless, "onnx.node", "control flow"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line(case, tmp_path):
    make, key, words = BAD[case]
    path = tmp_path / "net.onnx"
    make(path)
    with pytest.raises(UserError, match=words) as raised:
        zoo.open_network(str(path))
    assert raised.value.key == key and "net.onnx" in str(raised.value)


def test_every_cut_of_a_file_is_refused(tmp_path):
    content, path = (GOLDEN / "same_padding.onnx").read_bytes(), tmp_path / "net.onnx"
    for at in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:at])
        with pytest.raises(UserError):
            zoo.open_network(str(path))


def external(folder, name="weights.bin"):
    """The folder's `net.onnx` with its arrays in a file of their own."""
    folder.mkdir(exist_ok=True)
    onnx.save(onnx.load(GOLDEN / "plain.onnx"), folder / "net.onnx", save_as_external_data=True, location=name,
              size_threshold=0)  # fmt: skip
    return folder / "net.onnx"


def relocated(path, **facts):
    """The file, of whose arrays the first says another place."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = facts.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


def test_external_data_are_read_and_are_part_of_the_fingerprint(tmp_path):
    path = external(tmp_path / "a")
    whole, parts = zoo.open_network(str(GOLDEN / "plain.onnx")), zoo.open_network(str(path))
    assert all(np.array_equal(value, parts.arrays[key]) for key, value in whole.arrays.items())
    assert onnx_files.external_files(path) == [path.parent / "weights.bin"]

    def fingerprint(path):
        (tmp_path / "c.yaml").write_text(
            f"scale: smoke\nmodel: {{name: '{path}'}}\ndata: {{name: digits, input: [3, 32, 32], batch: 8}}\n"
            "train: {epochs: 0}\nprune: {method: none}\n"
        )
        return config.load(tmp_path / "c.yaml").fingerprint()

    shutil.copytree(path.parent, tmp_path / "b")
    before = fingerprint(path)
    assert fingerprint(tmp_path / "b" / "net.onnx") == before
    data = bytearray((tmp_path / "b" / "weights.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "b" / "weights.bin").write_bytes(data)
    assert fingerprint(tmp_path / "b" / "net.onnx") != before


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../secret", "link", "", "a\0b"])
def test_external_data_outside_the_folder_are_refused(location, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(10**5))
    path = external(tmp_path / "a")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "secret")
    relocated(path, location=location)
    with pytest.raises(UserError, match="only files in its own folder") as raised:
        zoo.open_network(str(path))
    assert raised.value.key == "onnx.external"


@pytest.mark.parametrize(
    "facts, words",
    [
        ({"location": "gone"}, "not in its folder"),
        ({"offset": "99999"}, "has .*do not belong together"),
        ({"offset": "-1"}, "'-1'"),
    ],  # fmt: skip
)
def test_external_data_that_are_missing_or_short(facts, words, tmp_path):
    path = external(tmp_path / "a")
    relocated(path, **facts)
    with pytest.raises(UserError, match=words) as raised:
        zoo.open_network(str(path))
    assert raised.value.key == "onnx.external"


def test_arrays_larger_than_memory_are_refused_before_they_are_read(tmp_path):
    """A sparse file of a terabyte that takes no room on the disk."""
    path = external(tmp_path / "a")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[:] = [2**19, 2**19]
    path.write_bytes(model.SerializeToString())
    with open(tmp_path / "a" / "weights.bin", "r+b") as file:
        file.truncate(2**40 + 2**20)
    with pytest.raises(UserError) as raised:
        zoo.open_network(str(path))
    assert raised.value.key == "onnx.memory"


def constants(path, n):
    """A file of `n` constants of 4 MB, which are external data."""
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2**20], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights.bin")
    (path.parent / "weights.bin").write_bytes(bytes(2**22))
    nodes = [helper.make_node("Constant", [], [f"c{k}"], value=tensor) for k in range(n)]
    return write(path, [*nodes, helper.make_node("ReduceSum", ["c0"], ["c"]), helper.make_node("Add", ["x", "c"], "y")])


def test_external_data_of_constants_are_part_of_the_network(tmp_path):
    path = constants(tmp_path / "net.onnx", 1)
    assert zoo.open_network(path).input_shape == (4, 6, 6)
    assert onnx_files.external_files(Path(path)) == [tmp_path / "weights.bin"]


def test_constants_larger_than_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    """Each alone would fit, and together they take no more room on the disk than one."""
    path = constants(tmp_path / "net.onnx", 16)
    monkeypatch.setattr(onnx_files, "room", lambda: 2**25)
    with pytest.raises(UserError, match="arrays of 67,108,864 bytes") as raised:
        zoo.open_network(path)
    assert raised.value.key == "onnx.memory"


def test_reading_raises_no_warnings_and_prints_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo.open_network(str(GOLDEN / "resnet.onnx"))
        with pytest.raises(UserError):
            zoo.open_network(str(GOLDEN / "plain.onnx"), (3, 48, 48))
    assert capfd.readouterr() == ("", "")


def test_depthwise_convolutions_of_channels_that_stay_keep_all_groups(tmp_path):
    """Behind a layer norm along the channels nothing goes, whichever channels go elsewhere."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["b"]),
        helper.make_node("Conv", ["b", "c"], ["d"]),
        helper.make_node("Transpose", ["d"], ["e"], perm=[0, 2, 3, 1]),
        helper.make_node("LayerNormalization", ["e", "f"], ["g"]),
        helper.make_node("Transpose", ["g"], ["h"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["h", "i"], ["y"], group=4),
    ]
    arrays = {"a": numbers(4, 4, 1, 1), "c": numbers(4, 4, 1, 1), "f": np.ones(4, np.float32), "i": numbers(4, 1, 3, 3)}
    net = zoo.open_network(write(tmp_path / "n.onnx", nodes, arrays))
    (group,) = net.groups
    keep, x = {group.name: np.array([3])}, numbers(2, 4, 6, 6)
    small = shrink(net, keep)
    np.testing.assert_allclose(predict(small, x), predict(silence(net, keep), x), rtol=1e-4, atol=1e-5)
