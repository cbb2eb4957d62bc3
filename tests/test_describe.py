"""The describe and evaluate scripts: what they print, and one line for bad input."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from mutations import tried
from networks import random_network, shape_only

from gcp.backend import files
from gcp.cost.analytic import describe
from gcp.errors import UserError

SCRIPTS = Path(__file__).parent.parent / "scripts"


def script(name):
    """A script's `run`, to call without the second and a half that importing MXNet takes."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run


def test_json_has_the_promised_keys(capsys):
    script("describe")(["resnet18_v1b", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert {"params", "macs", "groups", "running_statistics"} <= set(facts)
    assert all(
        set(g) == {"name", "size", "producers", "consumers", "macs_per_channel", "params_per_channel"}
        for g in facts["groups"]
    )
    assert (facts["params"], facts["macs"], facts["running_statistics"]) == (11689512, 1814073344, 9600)
    assert facts["groups"][1] == {
        "name": "layers1_conv0",
        "size": 64,
        "producers": ["layers1_conv0"],
        "consumers": ["layers1_conv1"],
        "macs_per_channel": 2 * 64 * 9 * 56 * 56,
        "params_per_channel": 2 * 64 * 9 + 2,
    }


def test_input_and_classes_can_be_given(capsys):
    script("describe")(["resnet50_v1d_0.11", "--input", "3,64,64", "--classes", "10", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["input"], facts["classes"]) == ([3, 64, 64], 10)
    whole = describe(shape_only("resnet50_v1d_0.11"))
    width = whole["groups"][-1]["size"], [g for g in whole["groups"] if "dense0" in g["consumers"]][0]["size"]
    assert whole["params"] - facts["params"] == 990 * (width[1] + 1)


def test_the_table_has_a_line_for_every_group(capsys):
    script("describe")(["cifar_resnet20_v1", "--input", "3,32,32"])
    lines = capsys.readouterr().out.splitlines()
    assert "272,474 params (+ 1,568 running statistics)  40,813,184 MACs" in lines[0]
    assert len(lines) == 2 + 12
    assert lines[2].split()[:2] == ["conv0", "16"]


def test_a_saved_network_is_described_by_its_prefix(tmp_path, capsys):
    net = random_network("cifar_resnet20_v1")
    files.save(net, tmp_path / "net")
    for name in ("net", "net-symbol.json"):
        script("describe")([str(tmp_path / name), "--json"])
        assert json.loads(capsys.readouterr().out) == describe(net)
    script("describe")([str(tmp_path / "net"), "--input", "3,32,32", "--json"])
    assert json.loads(capsys.readouterr().out)["macs"] > 3 * describe(net)["macs"]
    with pytest.raises(UserError, match="has 7 classes, 10 are needed"):
        script("describe")([str(tmp_path / "net"), "--classes", "10"])


@pytest.mark.slow
def test_describing_takes_no_memory_for_weights():
    for name in ("resnet101_v1b", "vgg16_bn"):
        arrays = shape_only(name).arrays.values()
        assert sum(a.size for a in arrays) > 40e6
        assert all(set(a.strides) == {0} for a in arrays)


@pytest.mark.parametrize(
    "args, said",
    [
        (["resnet18_v1bb"], "nearest: resnet18_v1b"),
        (["./nothing/here"], "no file './nothing/here-symbol.json'"),
        (["vgg16_bn", "--input", "3,16,16"], "cannot take an input of 3x16x16"),
        (["resnet18_v1b", "--input", "224"], "argument --input: '224' must be channels,height,width"),
        (["resnet50_v1b_gn"], "resnet50_v1b_gn"),
        (["resnet18_v1b", "--classes", "0"], "argument --classes: '0' must be a whole number"),
    ],
)
def test_bad_input_is_a_user_error_of_one_line(args, said, capsys):
    with pytest.raises(UserError) as error:
        script("describe")(args)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_bad_input_ends_with_one_line_and_exit_2(tmp_path):
    net = random_network("cifar_resnet20_v1")
    paths = files.save(net, tmp_path / "net")
    paths[1].write_bytes(paths[1].read_bytes()[:5000])
    for words, said in (
        (["describe.py", "vgg16_bn", "--input", "3,16,16"], "3x16x16"),
        (["evaluate.py", str(tmp_path / "net"), "--data", "digits"], "net-0000.params"),
    ):
        code, out, err = tried(words)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
    "args, said",
    [
        (["resnet18_v1b", "--data", "digits"], "is not a saved network"),
        (["net", "--data", "digitz"], "digitz"),
        (["net", "--data", "folder"], "root"),
        (["net", "--data", "digits"], "has 7 classes"),
    ],
)
def test_evaluate_refuses_what_does_not_fit(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.save(random_network("cifar_resnet20_v1"), "net")
    with pytest.raises(UserError) as error:
        script("evaluate")(args)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssd_300_vgg16_atrous_voc", "yolo3_darknet53_voc", "densenet121"])
def test_networks_whose_builders_would_download_are_described_offline(name, capsys):
    script("describe")([name, "--strict", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["groups"] and facts["name"] == name


@pytest.mark.slow
def test_evaluate_prints_accuracy_cost_and_speed(tmp_path, capsys):
    net = random_network("cifar_resnet20_v1", n_classes=10)
    files.save(net, tmp_path / "net")
    script("evaluate")([str(tmp_path / "net"), "--data", "digits", "--batch", "8"])
    result = json.loads(capsys.readouterr().out)
    facts = describe(net)
    assert (result["macs"], result["params"]) == (facts["macs"], facts["params"])
    assert 0 <= result["top1"] <= result["top5"] <= 1 and result["n_eval"] > 300
    assert result["throughput"]["images_per_second"] > 0 and result["throughput"]["batch"] == 8
