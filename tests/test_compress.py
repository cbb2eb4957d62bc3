"""One network made smaller in one call: what it writes, without labels too, and what is refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from gcp.backend import export, files
from gcp.backend.blocks import predict
from gcp.backend.zoo import from_gluoncv
from gcp.cost.analytic import macs
from gcp.data import datasets
from gcp.errors import UserError
from gcp.experiment import compress
from gcp.report import tables
from scripts import compress as script

REPO = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("network") / "net"
    files.save(from_gluoncv("cifar_resnet20_v1", (3, 8, 8), 10, seed=0), prefix)
    return str(prefix)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten classes of three images each, all in their class's folder."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in "abcdefghij":
        (folder / name).mkdir()
        for k in range(3):
            cv2.imwrite(str(folder / name / f"{k}.png"), rng.integers(0, 256, (8, 8, 3), np.uint8))
    return folder


def job(network, out, data=None, **how):
    data = data or datasets.options(name="digits", input=(3, 8, 8), n_train=100, batch=16)
    return compress.Job(network, data, **{"target": 0.5, "out": str(out), "epochs": 0, "threads": 1, **how})


@pytest.mark.slow
def test_what_comes_out_is_smaller_and_the_same_in_both_forms(network, tmp_path):
    finished = compress.compress(job(network, tmp_path / "small"))
    small, x = files.load(tmp_path / "small"), np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    assert macs(small)(small.widths) == finished.record.stages.final.macs <= 0.5 * finished.record.stages.dense.macs
    np.testing.assert_allclose(export.onnx_outputs(tmp_path / "small.onnx", 1)(x), predict(small, x), atol=1e-4)
    assert finished.record.images["reconstruction"] == 96  # 90 training images in whole batches of 16
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "small-run").rglob("record.json")}
    again = compress.compress(job(network, tmp_path / "small"))
    assert again.record == finished.record and all(path.stat().st_mtime_ns == t for path, t in before.items())


@pytest.mark.slow
def test_without_labels_the_network_gives_them(network, pictures, tmp_path):
    data = datasets.options(name="images", root=str(pictures), input=(3, 8, 8), n_classes=10, batch=8)
    record = compress.compress(job(network, tmp_path / "small", data, epochs=1)).record
    assert record.stages.dense.top1 == 1.0 and record.stages.dense.n_eval == 6
    assert record.config["finetune"]["teacher"] == "dense" and record.config["finetune"]["epochs"] == 1


def test_class_folders_that_nobody_divided(pictures):
    data = datasets.load(datasets.options(name="folder", root=str(pictures), input=(3, 8, 8)))
    assert data.classes == tuple("abcdefghij") and len(data.test) == 6
    rows = [set(split.rows) for split in (data.train, data.validation, data.test)]
    assert sum(map(len, rows)) == 30 == len(set.union(*rows))
    assert data.train.labels.tolist() == np.repeat(range(10), 3).tolist()


def test_a_smaller_target_gets_more_epochs(network, tmp_path):
    assert [job(network, tmp_path, epochs=None, target=t).n_epochs for t in (1.0, 0.5, 0.1, 0.01)] == [5, 10, 50, 50]
    cfg = compress.configuration(job(network, tmp_path, epochs=10, target=0.5))
    assert (cfg.prune.gcp.iterations * 2 * cfg.prune.gcp.recover_epochs, cfg.finetune.epochs) == (1.0, 9)


@pytest.mark.slow
def test_exploring_gives_a_row_for_each_target_that_can_be_reached(network, tmp_path):
    rows = list(compress.explore(job(network, tmp_path / "x"), [0.8, 0.5, 0.001]))
    assert [row["target"] for row in rows] == [1.0, 0.8, 0.5] and rows[0]["macs_kept"] == 1.0
    assert all(row["cost_kept"] == row["macs_kept"] <= row["target"] for row in rows)
    text = tables.write_front(rows, tmp_path / "front")[0].read_text()
    assert f"{100 * rows[2]['top1_fitted']:.2f}" in text and "10 images" in text


def refused(network, out, *options):
    done = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "compress.py"), network, "--out", str(out), *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not Path(f"{out}.onnx").exists()
    return done.stderr


def test_what_does_not_fit_is_refused(network, pictures, tmp_path):
    with pytest.raises(UserError, match="0.001 cannot be reached"):
        compress.compress(job(network, tmp_path / "a", target=0.001))
    with pytest.raises(UserError, match="not a saved network"):
        compress.compress(job("resnet18_v1b", tmp_path / "b"))
    (tmp_path / "two" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="class folder without images"):
        datasets.load(datasets.options(name="folder", root=str(tmp_path / "two"), input=(3, 8, 8)))
    with pytest.raises(UserError, match="holds no image"):
        datasets.load(datasets.options(name="images", root=str(tmp_path / "two"), input=(3, 8, 8), n_classes=10))


def test_each_number_of_threads_has_a_latency_model_of_its_own(network, tmp_path, monkeypatch):
    monkeypatch.setattr(compress.clock, "against_reference", lambda *_, **how: None)
    monkeypatch.setattr(compress.sampling, "sample", lambda *_, **how: None)
    monkeypatch.setattr(compress.latency, "fit", lambda *_: None)
    monkeypatch.setattr(compress.latency, "save", lambda _, path: path.write_text("{}"))
    models = {compress._latency_model(job(network, tmp_path / "x", cost="latency", threads=n)) for n in (1, 2, 1)}
    assert len(models) == 2 and all(model.parent == tmp_path / "x-run" for model in models)


@pytest.mark.parametrize("name", ["net", "a/net", "net.onnx", "NET.ONNX", "net-symbol.json", "a/net-0000.params"])
def test_files_are_named_after_the_network_however_it_is_given(name):
    assert script.default_prefix(name).lower() == "compressed/net"


@pytest.mark.slow
def test_the_script(network, pictures, tmp_path):
    command = [sys.executable, str(REPO / "scripts" / "compress.py"), network, "--data", str(pictures)]
    command += ["--epochs", "0", "--out", str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and lines[0].split() == ["before", "after"]
    assert [line.split()[0] for line in lines[1:5]] == ["top-1", "MACs", "parameters", "milliseconds"]
    done = subprocess.run([*command, "--explore", "--unlabelled"], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "small-explore.png").stat().st_size > 10_000, done.stderr
    assert "unlabelled" in refused(network, tmp_path / "a", "--data", "digits", "--unlabelled")
    for name in "ab":
        shutil.copytree(pictures / name, tmp_path / "two" / name)
    assert "classes" in refused(network, tmp_path / "b", "--data", str(tmp_path / "two"))
    (tmp_path / "flat").mkdir()
    cv2.imwrite(str(tmp_path / "flat" / "x.png"), np.zeros((8, 8, 3), np.uint8))
    assert "--unlabelled" in refused(network, tmp_path / "c", "--data", str(tmp_path / "flat"))
    assert refused(network, tmp_path / "no" / "x", "--data", str(tmp_path / "absent"))
