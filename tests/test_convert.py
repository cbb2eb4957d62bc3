"""Networks from one form to another: what comes out is compared with what went in, and what is wrong is one line."""

from __future__ import annotations

import importlib.util
import json
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import images, random_keep
from onnx import helper
from safetensors.numpy import save_file
from test_onnx import GOLDEN, write

from gcp.backend import files, torch_files, zoo
from gcp.backend.blocks import predict
from gcp.backend.export import onnx_outputs
from gcp.errors import UserError
from gcp.graph.surgery import shrink

SCRIPT = Path(__file__).parent.parent / "scripts" / "convert.py"


@pytest.fixture
def convert(capsys):
    """The script's `run`, in this process; what it printed."""
    spec = importlib.util.spec_from_file_location("scripts_convert", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*args):
        module.run([str(arg) for arg in args])
        return json.loads(capsys.readouterr().out)

    return run


# ---- ONNX -----------------------------------------------------------------------------------------------------------


def test_onnx_to_a_saved_network_and_back(convert, tmp_path):
    source = GOLDEN / "regnet.onnx"
    first = convert(source, tmp_path / "net", "--check")
    assert first["difference"] < 1e-5 and [Path(path).exists() for path in first["files"]] == [True, True]
    second = convert(tmp_path / "net", tmp_path / "net.onnx", "--check")
    assert second["difference"] < 1e-5 and (second["opset"], second["ir"]) == (13, 8)
    model = onnx.load(tmp_path / "net.onnx")
    assert (model.opset_import[0].version, model.ir_version) == (13, 8)
    names = [node.name for node in model.graph.node]
    assert all(names) and len(set(names)) == len(names)
    x = images(files.load(tmp_path / "net"), 3)
    expected = onnx_outputs(source, 1, each=True)(x)
    np.testing.assert_allclose(onnx_outputs(tmp_path / "net.onnx", 1)(x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet", "convnext", "cross_stage", "same_padding"])
def test_what_the_exporter_of_mxnet_does_not_write_is_spelt_out(name, convert, tmp_path):
    """Channel shuffles, dense layers along the last axis, resizing between pixels' centres: of a pruned network."""
    net = zoo.open_network(str(GOLDEN / f"{name}.onnx"))
    net = shrink(net, random_keep(net))
    files.save(net, tmp_path / "net")
    assert convert(tmp_path / "net", tmp_path / "net.onnx", "--check")["difference"] < 1e-5
    assert not {"Shape", "Slice"} & {n.op_type for n in onnx.load(tmp_path / "net.onnx").graph.node} or name[0] in "sc"


def test_an_exported_network_is_read_again(convert, tmp_path):
    net = zoo.open_network(str(GOLDEN / "densenet.onnx"))
    convert(GOLDEN / "densenet.onnx", tmp_path / "net.onnx")
    again = zoo.open_network(str(tmp_path / "net.onnx"))
    np.testing.assert_allclose(predict(again, images(net, 2)), predict(net, images(net, 2)), rtol=1e-4, atol=1e-6)
    assert again.widths.keys() and sum(again.widths.values()) == sum(net.widths.values())


@pytest.mark.parametrize("target", ["net", "net.onnx"])
def test_forms_that_differ_are_refused_and_nothing_is_kept(target, convert, tmp_path, monkeypatch):
    monkeypatch.setattr("gcp.backend.convert.TOLERANCE", 0)
    with pytest.raises(UserError, match="nothing is kept") as raised:
        convert(GOLDEN / "regnet.onnx", tmp_path / target, "--check")
    assert raised.value.key == "convert.check" and not list(tmp_path.iterdir())


def test_an_onnx_file_that_differs_from_a_saved_network_is_not_kept(convert, tmp_path, monkeypatch):
    convert(GOLDEN / "resnet.onnx", tmp_path / "saved")
    monkeypatch.setattr("gcp.backend.convert.TOLERANCE", -1)
    with pytest.raises(UserError, match="nothing is kept"):
        convert(tmp_path / "saved", tmp_path / "net.onnx", "--check")
    assert {path.name for path in tmp_path.iterdir()} == {"saved-symbol.json", "saved-0000.params"}


def test_several_outputs_are_refused_where_they_cannot_be_compared(convert, tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Sigmoid", ["x"], ["z"])]
    two = write(tmp_path / "two.onnx", nodes, outputs=("y", "z"))
    convert(two, tmp_path / "net")
    for source, target, *check in (
        (two, "o.onnx"),
        (tmp_path / "net", "o.onnx"),
        (tmp_path / "net", "o.pt2"),
        (two, "new", "--check"),
    ):
        with pytest.raises(UserError, match="has 2 outputs") as raised:
            convert(source, tmp_path / target, *check)
        assert raised.value.key == "onnx.outputs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net-0000.params", "net-symbol.json", "two.onnx"]


def test_a_gluoncv_name_needs_its_published_weights(convert, tmp_path):
    with pytest.raises(UserError, match="--pretrained"):
        convert("resnet18_v1b", tmp_path / "x.onnx")


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def torchvision_resnet18(n_classes):
    """Names and shapes of torchvision's state dict."""

    def norm(name, width):
        return {f"{name}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")} | {
            f"{name}.num_batches_tracked": ()
        }

    found, width = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}, 64
    for layer, out in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            place = f"layer{layer}.{block}"
            found |= {f"{place}.conv1.weight": (out, width, 3, 3), **norm(f"{place}.bn1", out)}
            found |= {f"{place}.conv2.weight": (out, out, 3, 3), **norm(f"{place}.bn2", out)}
            if width != out:
                found |= {f"{place}.downsample.0.weight": (out, width, 1, 1), **norm(f"{place}.downsample.1", out)}
            width = out
    return {**found, "fc.weight": (n_classes, 512), "fc.bias": (n_classes,)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A file of random arrays, and the arrays."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("checkpoint") / "resnet18.safetensors"
    arrays = {
        key: np.array(7) if not shape else rng.random(shape, np.float32)
        for key, shape in torchvision_resnet18(6).items()
    }
    save_file(arrays, path)
    return path, arrays


def test_a_resnet_of_torchvision_is_gluoncvs_by_names(checkpoint, convert, tmp_path):
    path, arrays = checkpoint
    facts = convert(path, tmp_path / "net", "--input", "3,32,32")
    assert (facts["network"], facts["classes"]) == ("resnet18_v1b", 6)
    net = files.load(tmp_path / "net")
    assert len(net.arrays) == sum(not key.endswith("tracked") for key in arrays)
    pairs = {
        "conv0_weight": "conv1.weight",
        "batchnorm0_beta": "bn1.bias",
        "down2_conv0_weight": "layer2.0.downsample.0.weight",
        "layers4_batchnorm3_gamma": "layer4.1.bn2.weight",
        "layers1_batchnorm0_running_var": "layer1.0.bn1.running_var",
        "dense0_bias": "fc.bias",
    }
    for own, theirs in pairs.items():
        np.testing.assert_array_equal(net.arrays[own], arrays[theirs])


def changed(arrays, **changes):
    return {key: changes.get(key.replace(".", "_"), value) for key, value in arrays.items()}


BAD = {  # what is wrong -> what to write, and the key of the message
    "no resnet": (lambda a: {"features.0.weight": a["conv1.weight"]}, "checkpoint.network"),
    "another depth": (lambda a: {k: v for k, v in a.items() if "layer3.1" not in k}, "checkpoint.network"),
    "a shape": (lambda a: changed(a, conv1_weight=np.zeros((64, 3, 3, 3), np.float32)), "checkpoint.network"),
    "an array too many": (lambda a: {**a, "extra.weight": a["fc.bias"]}, "checkpoint.network"),
    "nothing": (lambda a: {}, "checkpoint.content"),
}


@pytest.mark.parametrize("case", BAD)
def test_checkpoints_of_other_networks_are_one_line(case, checkpoint, convert, tmp_path):
    make, key = BAD[case]
    save_file({k: np.ascontiguousarray(v) for k, v in make(checkpoint[1]).items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="x.safetensors") as raised:
        convert(tmp_path / "x.safetensors", tmp_path / "net")
    assert raised.value.key == key and not list(tmp_path.glob("net*"))


def test_the_named_network_is_the_one_that_is_compared(checkpoint, convert, tmp_path):
    with pytest.raises(UserError, match="resnet34_v1b has different arrays: 'layer1.2.conv1.weight' is missing"):
        convert(checkpoint[0], tmp_path / "net", "--network", "resnet34_v1b")


def test_layers_that_a_network_holds_but_never_calls_are_left_out(checkpoint, monkeypatch):
    """As NASNet has them."""
    names = zoo.structured_names
    monkeypatch.setattr(zoo, "structured_names", lambda *of: {**names(*of), "idle.weight": "idle_weight"})
    assert torch_files.resnet(checkpoint[1], "resnet18_v1b", (3, 32, 32)).name == "resnet18_v1b"


def safetensors(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


DAMAGED = {
    "empty": b"",
    "junk": b"\xff" * 100,
    "a header that is too long": struct.pack("<Q", 2**62) + b"{}",
    "no data": safetensors({"fc.weight": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
    "a shape that lies": safetensors(
        {"fc.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "a number for a matrix": safetensors(
        {"fc.weight": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "a matrix of nothing": safetensors({"fc.weight": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}),
    "a type of numbers that numpy lacks": safetensors(
        {"fc.weight": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_safetensors_are_one_line(case, convert, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(DAMAGED[case])
    with pytest.raises(UserError, match="x.safetensors") as raised:
        convert(tmp_path / "x.safetensors", tmp_path / "net")
    assert raised.value.key in ("checkpoint.format", "checkpoint.content", "checkpoint.network")


def test_pytorchs_files_without_pytorch(convert, tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(b"PK")
    for name in ("torch", "onnx2torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"save it as .safetensors.*\[torch\]") as raised:
        convert(tmp_path / "x.pth", tmp_path / "net")
    assert raised.value.key == "torch.absent"
    with pytest.raises(UserError, match=r"\[torch\]") as raised:
        convert(GOLDEN / "plain.onnx", tmp_path / "net.pt2")
    assert raised.value.key == "torch.absent" and not list(tmp_path.glob("net*"))


def test_a_checkpoint_has_no_graph_to_check(checkpoint, convert, tmp_path):
    with pytest.raises(UserError) as raised:
        convert(checkpoint[0], tmp_path / "net", "--check")
    assert raised.value.key == "convert.check"


# ---- with PyTorch, in the environment of scripts/peers.sh -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
def test_pytorchs_own_files(convert, tmp_path):
    """State dicts, plain and in a training script's checkpoint; a whole module is refused and nothing in it runs."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    module = torchvision.models.resnet18(num_classes=4).eval()
    state = module.state_dict()
    torch.save(state, tmp_path / "a.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pt")
    x = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    for name in ("a.pth", "b.pt"):
        convert(tmp_path / name, tmp_path / "net", "--input", "3,64,64")
        np.testing.assert_allclose(predict(files.load(tmp_path / "net"), x), torch_files.outputs(module, x), atol=1e-4)
    torch.save(module, tmp_path / "whole.pt")
    torch.save({"fc.weight": torch.zeros(1).expand(2**50)}, tmp_path / "vast.pt")
    weight = torch.eye(4)
    torch.save({"fc.weight": weight.to_sparse()}, tmp_path / "sparse.pt")
    torch.save({"fc.weight": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)}, tmp_path / "int8.pt")
    torch.save({"fc.weight": weight.to("meta")}, tmp_path / "meta.pt")
    torch.save({"fc.weight": weight * 1j}, tmp_path / "complex.pt")
    for name, key in (
        ("whole.pt", "checkpoint.pickle"),
        ("vast.pt", "checkpoint.memory"),
        ("sparse.pt", "checkpoint.content"),
        ("int8.pt", "checkpoint.content"),
        ("meta.pt", "checkpoint.content"),
        ("complex.pt", "checkpoint.content"),
    ):
        with pytest.raises(UserError) as raised:
            convert(tmp_path / name, tmp_path / "other")
        assert raised.value.key == key


@pytest.mark.parametrize("end", [".pt2", ".safetensors", ".pth"])
def test_to_pytorch(end, convert, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx2torch")
    facts = convert(GOLDEN / "shufflenet.onnx", tmp_path / f"net{end}", "--check")
    assert facts["difference"] < 1e-5
    if end == ".pt2":
        program = torch.export.load(tmp_path / "net.pt2").module()
        assert program(torch.zeros(5, 3, 32, 32)).shape == (5, 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the older exporter, which the page names
def test_from_a_model_of_pytorch_to_a_smaller_one(tmp_path, monkeypatch):
    """The steps of docs/pytorch.md, with its own call of PyTorch's exporter."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    pytest.importorskip("onnx2torch")
    monkeypatch.chdir(tmp_path)
    blocks = [[1, 16, 1, 1], [4, 32, 2, 2]]
    model = torchvision.models.MobileNetV2(num_classes=10, inverted_residual_setting=blocks)
    page = (SCRIPT.parent.parent / "docs" / "pytorch.md").read_text()
    call = page.partition("import torch\n")[2].partition("```")[0].replace("224, 224", "32, 32")
    exec(call, {"torch": torch, "model": model})
    (steps,) = [text for text in page.split("```") if "compress.py net.onnx --data my_images --target" in text]
    more = ["--n-train", "200", "--epochs", "0", "--batch", "32"]
    for line in steps.splitlines()[2:]:
        words = shlex.split(line.replace("my_images", "fashion_mnist"), comments=True)
        words = words + more if "compress" in words[1] and "--explore" not in words else words
        if "--explore" not in words:
            done = subprocess.run([sys.executable, "-W", "ignore", SCRIPT.parent / Path(words[1]).name, *words[2:]])
            assert done.returncode == 0, words
    small = torch.export.load("small.pt2").module()
    assert small(torch.zeros(3, 3, 32, 32)).shape == (3, 10)
    size = lambda name: sum(v.size for v in zoo.open_network(name).arrays.values())  # noqa: E731
    assert size("small.onnx") < 0.8 * size("net.onnx")


def test_the_table_of_what_works_counts_steps_and_names_what_failed():
    spec = importlib.util.spec_from_file_location("scripts_coverage", SCRIPT.parent / "coverage.py")
    coverage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(coverage)
    assert len(coverage.NAMES) == len(set(coverage.NAMES)) >= 93
    found = {"torchvision:a": dict.fromkeys(coverage.STEPS, "1e-07"), "timm:b": {"exported": "yes", "imported": "Det"}}
    text = coverage.table(found)
    assert "| read, with equal outputs | 1 of 1 | 0 of 1 | 1 of 2 |" in text
    assert "| timm:b | read, with equal outputs | Det |" in text and "torchvision:a" not in text
