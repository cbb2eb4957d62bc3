"""Exports against the network they came from: ONNX in onnxruntime, int8 in plain MXNet, and the script around both."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
import onnx
import onnxruntime
import pytest
from networks import built, difference, images, random_keep, random_network

from gcp.backend import blocks, export, files
from gcp.data import datasets
from gcp.errors import UserError
from gcp.graph.network import Node
from gcp.graph.surgery import shrink
from gcp.train.tasks import CLASSIFICATION

SCRIPT = Path(__file__).parent.parent / "scripts" / "export.py"
SMALL = "cifar_resnet20_v1"


def pruned(name):
    net = random_network(name)
    return shrink(net, random_keep(net))


def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("scripts_export", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*args):
    """The script's `run`, in this process."""
    script().run([str(a) for a in args])


def calibration(net, n=32):
    return [(images(net, 16, seed), np.zeros(16, np.int32), 16) for seed in range(n // 16)]


def outputs(block, x):
    return block(mx.nd.array(x)).asnumpy()


@pytest.fixture(scope="module")
def digits():
    return datasets.load(datasets.options(name="digits", input=(3, 16, 16), n_train=300))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The prefix of a saved network of ten classes."""
    prefix = tmp_path_factory.mktemp("saved") / "net"
    files.save(random_network(SMALL, n_classes=10), prefix)
    return prefix


# ---- ONNX -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, name",
    [
        (random_network, SMALL),
        (pruned, SMALL),
        *(
            pytest.param(pruned, name, marks=pytest.mark.slow)
            for name in ("cifar_resnet20_v2", "mobilenetv2_1.0", "resnet50_v1d")
        ),
    ],
)
def test_onnx_equals_mxnet_at_any_batch(make, name, tmp_path):
    net = make(name)
    path = export.to_onnx(net, tmp_path / "new folder" / "net.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["data"]
    assert session.get_inputs()[0].shape == ["batch", *net.input_shape]
    assert session.get_outputs()[0].shape == ["batch", 7]
    block = blocks.to_block(net)
    for n in (1, 3, 8):
        x = images(net, n, seed=n)
        assert difference(session.run(None, {"data": x})[0], block(mx.nd.array(x)).asnumpy()) < 1e-5


def test_an_output_that_is_an_image_has_its_shape(tmp_path):
    image = mx.sym.Convolution(mx.sym.var("data"), num_filter=5, kernel=(2, 2), name="conv")
    path = export.to_onnx(built(image, (3, 8, 8)), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == ["batch", 5, 7, 7]


def test_onnx_file_is_of_the_stated_version_and_no_input_is_a_weight(tmp_path):
    model = onnx.load(str(export.to_onnx(random_network(SMALL), tmp_path / "net.onnx")))
    assert (model.ir_version, [o.version for o in model.opset_import]) == (8, [13])
    assert not {i.name for i in model.graph.input} & {t.name for t in model.graph.initializer}
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.slow
def test_exporting_says_nothing(tmp_path, capfd):
    handlers = list(logging.root.handlers)
    net = random_network(SMALL)
    export.to_onnx(net, tmp_path / "net.onnx")
    outputs(export.quantized(net, calibration(net)), images(net))
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers


@pytest.mark.parametrize("wrong", [0.999, np.nan])
def test_another_result_leaves_the_old_file(wrong, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_text("old")
    monkeypatch.setattr(export, "predict", lambda net, x: wrong * blocks.predict(net, x))
    with pytest.raises(UserError, match="differs from MXNet by"):
        export.to_onnx(random_network(SMALL), path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"] and path.read_text() == "old"


def test_an_operator_the_exporter_lacks_is_named(tmp_path):
    net = random_network(SMALL)
    last = Node("softmin", "last", {}, net.outputs)
    shapes = (*net.shapes, net.shapes[net.outputs[0][0]])
    net = replace(net, nodes=(*net.nodes, last), outputs=((len(net.nodes), 0),), shapes=shapes)
    with pytest.raises(UserError, match=f"'{SMALL}' cannot be written as ONNX: .*softmin"):
        export.to_onnx(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime.*pip install onnx==1.18.0"):
        export.to_onnx(random_network(SMALL), tmp_path / "net.onnx")


# ---- int8 -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, name, bound", [(random_network, SMALL, 0.99), (pruned, SMALL, 0.99), (pruned, "mobilenetv2_1.0", 0.99)]
)
def test_int8_is_near_float32_and_all_of_it_is_int8(make, name, bound):
    net = make(name)
    block = export.quantized(net, calibration(net))
    x = images(net, 16)
    assert np.corrcoef(outputs(block, x).ravel(), blocks.predict(net, x).ravel())[0, 1] > bound
    ops = [n["op"] for n in json.loads(block(mx.sym.var("data")).tojson())["nodes"]]
    in_int8, in_float32 = export.layers(block)
    with_weight = [n for n in net.nodes if n.op in ("Convolution", "FullyConnected")]
    assert len(in_int8) == len(with_weight) and not in_float32
    assert "Convolution" not in ops and "BatchNorm" not in ops


@pytest.mark.slow
def test_only_valid_images_are_calibrated_on():
    net = random_network(SMALL)
    ((x, y, _),) = calibration(net, 16)
    padded = np.concatenate([x, 100 * x])
    a, b = (export.quantized(net, [(z, y, 16)]) for z in (x, padded))
    assert np.array_equal(outputs(a, x), outputs(b, x))


def test_saved_int8_runs_in_plain_mxnet_with_identical_outputs(tmp_path):
    net = pruned(SMALL)
    block = export.quantized(net, calibration(net))
    paths = export.save_quantized(block, tmp_path / "new" / "int8")
    x = images(net, 5)
    expected = outputs(block, x)
    assert np.array_equal(outputs(export.load_quantized(tmp_path / "new" / "int8"), x), expected)
    plain = mx.gluon.SymbolBlock.imports(str(paths[0]), ["data"], str(paths[1]))
    assert np.array_equal(outputs(plain, x), expected)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["int8-0000.params", "int8-symbol.json"]
    export.save_quantized(block, tmp_path / "new" / "int8")  # over itself


@pytest.mark.slow
def test_int8_does_not_overwrite_the_network_it_came_from(saved):
    net = files.load(saved)
    before = {p: p.read_bytes() for p in saved.parent.iterdir()}
    with pytest.raises(UserError, match="is a float32 network"):
        export.save_quantized(export.quantized(net, calibration(net)), saved)
    assert before == {p: p.read_bytes() for p in saved.parent.iterdir()}


def test_what_is_no_saved_int8_network_is_refused(saved, tmp_path):
    with pytest.raises(UserError, match="none-symbol.json' is missing"):
        export.load_quantized(tmp_path / "none")
    with pytest.raises(UserError, match="is not an int8 network"):
        export.load_quantized(saved)
    net = random_network(SMALL)
    symbol, params = export.save_quantized(export.quantized(net, calibration(net)), tmp_path / "int8")
    text = symbol.read_text()
    symbol.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="is not a complete MXNet Symbol JSON"):
        export.load_quantized(tmp_path / "int8")
    symbol.write_text(text)
    mx.nd.save(str(params), {"arg:conv0_weight": mx.nd.zeros(1)})
    with pytest.raises(UserError, match="does not hold the arrays"):
        export.load_quantized(tmp_path / "int8")


def test_no_images_are_refused():
    with pytest.raises(UserError, match="none were given"):
        export.quantized(random_network(SMALL), [])


# ---- what is measured -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_writes_both_and_reports_both(saved, digits, tmp_path, capsys):
    run(
        saved,
        "--onnx",
        tmp_path / "net.onnx",
        "--int8",
        tmp_path / "int8",
        "--data",
        "digits",
        "--calibration",
        100,
        "--batch",
        16,
        "--repeats",
        2,
        "--json",
        tmp_path / "facts.json",
    )
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((tmp_path / "facts.json").read_text())
    assert facts["onnx"][0]["bytes"] == (tmp_path / "net.onnx").stat().st_size
    (int8,), net = facts["int8"], files.load(saved)
    assert (int8["n_calibration"], int8["n_layers_int8"], int8["layers_float32"]) == (100, 22, [])
    float32 = CLASSIFICATION.evaluate(net, digits.test)
    assert all(int8["float32"][k] == float32[k] for k in ("top1", "top5", "n_eval"))
    small = export.load_quantized(tmp_path / "int8")
    again = CLASSIFICATION.evaluate(export.outputs(small), digits.test)
    assert all(int8["int8"][k] == again[k] for k in ("top1", "top5", "n_eval"))
    assert int8["float32"]["times_first"] == 1
    assert int8["int8"]["times_first"] == int8["float32"]["latency_s"] / int8["int8"]["latency_s"]


@pytest.mark.parametrize(
    "networks, endings",
    [(["runs/x/final"], [""]), (["runs/dense/dense", "runs/x/final", "./net"], ["-dense", "-x", "-net"])],
)
def test_files_are_named_after_the_folders_of_networks(networks, endings):
    assert script()._endings(networks) == endings


@pytest.mark.parametrize("other", ["{}/x/final", "{}/y/x/final"])
def test_networks_that_would_overwrite_each_other_are_refused(other, tmp_path):
    networks = [str(tmp_path / "x" / "dense"), other.format(tmp_path)]
    with pytest.raises(UserError, match=f"'{networks[0]}' and '{networks[1]}' would both be written as ...-x; "):
        run(*networks, "--onnx", tmp_path / "out.onnx")


@pytest.mark.slow
def test_several_networks_are_compared_with_the_first(saved, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    net = files.load(saved)
    files.save(shrink(net, random_keep(net)), tmp_path / "other" / "final")
    run(
        saved,
        tmp_path / "other" / "final",
        "--int8",
        tmp_path / "int8",
        "--onnx",
        tmp_path / "net.onnx",
        "--data",
        "digits",
        "--calibration",
        64,
        "--batch",
        16,
        "--repeats",
        2,
        "--table",
        tmp_path / "new" / "int8",
    )
    first, second = json.loads(capsys.readouterr().out)["int8"]
    assert second["float32"]["times_first"] == pytest.approx(
        first["float32"]["latency_s"] / second["float32"]["latency_s"]
    )
    assert export.load_quantized(tmp_path / "int8-other") and (tmp_path / "net-other.onnx").exists()
    lines = (tmp_path / "new" / "int8.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[3].startswith("other,float32,") and lines[4].startswith("other,int8,")
    assert "calibrated on 64 training images" in (tmp_path / "new" / "int8.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, message",
    [
        (["{saved}"], "give --onnx FILE, --int8 PREFIX or both"),
        (["{saved}", "--int8", "{tmp}/int8"], "--int8 and --data go together"),
        (["{saved}", "--onnx", "{tmp}/net.onnx", "--table", "{tmp}/t"], "--table only matters with --int8"),
        (["{saved}", "--int8", "{tmp}/int8", "--data", "digitz"], "digits"),
        (["{saved}", "--int8", "{tmp}/int8", "--data", "digits", "--calibration", "0"], "argument --calibration"),
        (["{saved}", "--onnx", "{tmp}/net.onnx", "--batch", "0"], "argument --batch"),
        (["{saved}", "--int8", "{saved}", "--data", "digits", "--repeats", "1"], "float32 network"),
        (["{saved}", "--onnx", "{saved}-symbol.json/net.onnx"], "cannot be written"),
        (["resnet18_v1b", "--onnx", "{tmp}/net.onnx"], "'resnet18_v1b' is not a saved network"),
        (["{tmp}/absent", "--onnx", "{tmp}/net.onnx"], "absent-symbol.json"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(args, message, saved, tmp_path):
    before = sorted(saved.parent.iterdir())
    with pytest.raises(UserError) as caught:
        run(*(a.format(saved=saved, tmp=tmp_path) for a in args))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()) and sorted(saved.parent.iterdir()) == before


@pytest.mark.parametrize("path", [".", "/"])
def test_a_folder_in_place_of_the_onnx_file_is_refused(path, saved):
    with pytest.raises(UserError) as caught:
        run(saved, "--onnx", path)
    assert caught.value.key == "file.kind"


def test_other_classes_than_the_data_are_refused(tmp_path):
    files.save(random_network(SMALL), tmp_path / "seven")
    with pytest.raises(UserError, match="has 7 classes, 10 are needed"):
        run(tmp_path / "seven", "--onnx", tmp_path / "net.onnx", "--int8", tmp_path / "int8", "--data", "digits")
    assert not (tmp_path / "net.onnx").exists()


def test_a_mistake_exits_with_2(saved):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(saved)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
