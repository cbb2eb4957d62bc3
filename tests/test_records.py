"""Run folders: a record is there whole or not at all, whatever ended the process."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gcp import runtime, storage
from gcp.errors import UserError
from gcp.experiment import config
from gcp.experiment import log as events
from gcp.experiment import record as records


@pytest.fixture
def cfg(tmp_path):
    return config.Config.model_validate(
        {
            "name": "tiny",
            "scale": "smoke",
            "output": str(tmp_path / "runs"),
            "model": {"name": "resnet18_v1b"},
            "data": {"name": "digits"},
            "train": {"epochs": 1},
            "prune": {"method": "gcp", "target": 0.5},
        }
    )


def record(**changes) -> dict:
    stage = {
        "top1": 0.5,
        "top5": 0.9,
        "loss": 1.5,
        "n_eval": 100,
        "macs": 1000,
        "params": 100,
        "epochs": 2,
        "images": 200,
        "seconds": 1.5,
    }
    return {
        "fingerprint": "0123456789ab",
        "name": "tiny",
        "scale": "smoke",
        "seed": 0,
        "config": {},
        "git_commit": None,
        "versions": {},
        "device": {"name": "cpu", "cpu": "Test CPU", "threads": 1},
        "date": "2020-01-01T00:00:00+00:00",
        "model": "resnet18_v1b",
        "data": "digits",
        "method": "gcp",
        "objective": "macs",
        "target": 0.5,
        "round_to": 8,
        "stages": {"dense": stage, "pruned": stage, "final": {**stage, "macs": 490, "params": 30}},
        "widths": {"dense": {"g": 8}, "final": {"g": 4}},
        "history": [],
        "images": {"regularise": 60, "recover": 40},
        "seconds": 3.0,
        **changes,
    }


def test_what_a_record_implies():
    found = records.Record.model_validate(record())
    assert (found.macs_kept, found.params_kept) == (0.49, 0.3)
    assert (found.images_before_finetune, found.images_total) == (100, 300)


# A run


def test_the_run_folder_is_named_by_the_config_and_holds_it(cfg, tmp_path):
    with records.open_run(cfg) as run:
        assert run.path == tmp_path / "runs" / f"tiny-seed0-{cfg.fingerprint()}" == records.run_path(cfg)
        assert config.load(run.path / "config.yaml") == cfg
        assert not run.done and run.record is None


def test_no_run_has_the_folder_of_its_dense_network(cfg):
    """A run of this name that prunes nothing and fine-tunes nothing has the dense network's fingerprint."""
    from gcp.experiment.run import run

    prune = config.Prune(method="none")
    with pytest.raises(UserError) as error:
        run(cfg.model_copy(update={"name": "dense", "prune": prune}))
    assert error.value.key == "config.name" and not Path(cfg.output).exists()


def test_a_finished_run_is_done_when_opened_again(cfg):
    with records.open_run(cfg) as run:
        run.finish(**record())
        assert run.done and records.is_done(cfg)
    with records.open_run(cfg) as run:
        assert run.done and run.record == records.Record.model_validate(record())
    assert sorted(os.listdir(run.path)) == ["config.yaml", "lock", "record.json"]


def test_opening_again_leaves_the_checkpoints(cfg):
    with records.open_run(cfg) as run:
        (run.path / "dense.npz").write_bytes(b"checkpoint")
    with records.open_run(cfg) as run:
        assert (run.path / "dense.npz").read_bytes() == b"checkpoint"


def refuse(cfg, before=lambda run: None):
    with pytest.raises(UserError), records.open_run(cfg) as run:
        before(run)
        raise UserError("no such data")
    return records.run_path(cfg)


def test_a_run_that_is_refused_leaves_no_folder(cfg):
    assert not refuse(cfg).exists()


@pytest.mark.parametrize("did", [lambda run: run.log("epoch", n=1), lambda run: (run.path / "dense.npz").touch()])
def test_what_a_run_did_before_it_was_refused_is_kept(cfg, did):
    left = set(os.listdir(refuse(cfg, did)))
    assert left > {"config.yaml", "lock"} and set(os.listdir(refuse(cfg))) == left


def test_a_run_is_open_once(cfg):
    with records.open_run(cfg):
        with pytest.raises(UserError, match="another process is at work here"), records.open_run(cfg):
            pass
    with records.open_run(cfg):
        pass


@pytest.mark.slow
def test_a_killed_process_lets_go_of_its_run(cfg):
    hold = (
        "import sys, time; from gcp.experiment import config, record; "
        "run = record.open_run(config.load(sys.argv[1])); run.__enter__(); "
        "print('open', flush=True); time.sleep(60)"
    )
    with records.open_run(cfg):
        pass
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(records.run_path(cfg) / "config.yaml")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(records.__file__).parents[2],
    )
    with holder:
        try:
            assert holder.stdout.readline() == "open\n"
            with pytest.raises(UserError, match="another process"), records.open_run(cfg):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    with records.open_run(cfg):
        pass


def test_output_that_is_a_file(cfg, tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=f"^{tmp_path}/runs/.* cannot be written: "), records.open_run(cfg):
        pass


def test_a_broken_record_is_not_taken_for_done(cfg):
    with records.open_run(cfg) as run:
        (run.path / "record.json").write_text('{"name": "ti')
    for _ in range(2):  # the first failure lets go of the lock
        with pytest.raises(UserError, match="record.json: not valid JSON"), records.open_run(cfg):
            pass


@pytest.mark.parametrize(
    "change",
    [
        {"scale": None},
        {"stages": {}},
        {"seed": True},
        {"widths": {"dense": {}}},
        {"fingerprint": "x"},
        {"other": 1},
        {"device": {}},
        {"device": {"name": "tpu", "cpu": "Test CPU", "threads": 1}},
        {"device": {"name": "cpu", "cpu": "x" * 1001, "threads": 1}},
        {"device": {"name": "cpu", "cpu": "Test CPU", "threads": 0}},
    ],
)
def test_finish_takes_whole_records_only(cfg, change):
    with records.open_run(cfg) as run:
        with pytest.raises(UserError, match="do not form a valid record"):
            run.finish(**record(**change))
        assert not run.done and not (run.path / "record.json").exists()


# The log


def test_log_lines_in_order(cfg):
    with records.open_run(cfg) as run:
        run.log("epoch", loss=np.float32(0.5), widths={"g": np.int64(3)}, top1=np.array([0.25]))
        run.log("stop", loss=float("nan"), path=Path("a"))
    first, second = events.read_log(run.path / "log.jsonl")
    assert first == {"event": "epoch", "time": first["time"], "loss": 0.5, "widths": {"g": 3}, "top1": [0.25]}
    assert (second["loss"], second["path"]) == ("nan", "a")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first["time"])


@pytest.mark.parametrize("torn", ['{"event": "ep', '{"event": "b"}'])
def test_a_torn_last_line_is_dropped_on_resume(cfg, torn):
    with records.open_run(cfg) as run:
        run.log("a")
        with open(run.path / "log.jsonl", "a") as file:
            file.write(torn)
    with records.open_run(cfg) as run:
        run.log("c")
    assert [line["event"] for line in events.read_log(run.path / "log.jsonl")] == ["a", "c"]


def test_a_run_that_goes_on_does_not_say_things_twice(cfg):
    for said in ((1, 2), (1, 2, 3)):
        with records.open_run(cfg) as run:
            for number in said:
                run.log("iteration", number=number, loss=np.float64(0.1) / 3, widths={"b": 1, "a": 2})
    assert [line["number"] for line in events.read_log(run.path / "log.jsonl")] == [1, 2, 3]


def test_a_log_that_is_one_torn_line(cfg):
    with records.open_run(cfg) as run:
        (run.path / "log.jsonl").write_text('{"ev')
    with records.open_run(cfg) as run:
        assert events.read_log(run.path / "log.jsonl") == []


def test_epochs_and_stages_are_said_once_whatever_the_clock_says(cfg):
    for speed in (1.0, 2.0):
        with records.open_run(cfg) as run:
            for epoch in (1, 2, 2.5):
                run.log("epoch", stage="final", epoch=epoch, step=3, images_per_second=speed)
            run.log("epoch", stage="dense", epoch=1, step=3, images_per_second=speed)
            run.log("stage", stage="final", step=3, seconds=speed)
    lines = events.read_log(run.path / "log.jsonl")
    assert [(x["event"], x["stage"], x.get("epoch")) for x in lines] == [
        ("epoch", "final", 1),
        ("epoch", "final", 2),
        ("epoch", "final", 2.5),
        ("epoch", "dense", 1),
        ("stage", "final", None),
    ]
    assert all(1.0 in (x.get("images_per_second"), x.get("seconds")) for x in lines)


def test_curves_for_tensorboard(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    events.check_tensorboard()
    for n in (2, 3):  # a run, and the run that goes on
        with events.Log(tmp_path / "log.jsonl", tensorboard=True) as log:
            for epoch in range(1, n + 1):
                log.add("epoch", stage="final", epoch=epoch, step=10 * epoch, training_loss=1 / epoch, lr=0.5)
            log.add("iteration", iteration=1, loss=2.0)
    points = [
        (e.step, v.tag, v.tensor.float_val[0])
        for file in sorted((tmp_path / "tensorboard").iterdir())
        for e in loader.EventFileLoader(str(file)).Load()
        for v in e.summary.value
    ]
    assert points == [
        (10 * n, f"final/{key}", pytest.approx(value))
        for n in (1, 2, 3)
        for key, value in (("training_loss", 1 / n), ("lr", 0.5))
    ]
    assert len(events.read_log(tmp_path / "log.jsonl")) == 4


def test_a_missing_tensorboard_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "tensorboard.summary.writer.event_file_writer", raising=False)
    with pytest.raises(UserError, match=r"tensorboard: true needs a package that is not installed .* run `pip install"):
        events.check_tensorboard()


# Atomic writing


def test_write_json_takes_numpy_values_and_paths(tmp_path):
    storage.write_json(
        tmp_path / "a.json",
        {"x": np.float32(0.5), "n": np.int64(2), "a": np.arange(2), "p": tmp_path, "none": None, "t": (1, True)},
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "x": 0.5,
        "n": 2,
        "a": [0, 1],
        "p": str(tmp_path),
        "none": None,
        "t": [1, True],
    }


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), np.float32("inf")])
def test_write_json_names_the_place_of_a_number_that_is_not_finite(tmp_path, number):
    with pytest.raises(ValueError, match=re.escape("stages.dense.loss[1] is")):
        storage.write_json(tmp_path / "a.json", {"stages": {"dense": {"loss": [1.0, number]}}})
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    storage.write_json(path, 1)
    with pytest.raises(RuntimeError), storage.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "1\n" and os.listdir(tmp_path) == ["a.json"]


def test_the_temporary_file_keeps_the_suffix(tmp_path):
    with storage.replacing(tmp_path / "a.npz") as temporary:
        np.savez(temporary, x=np.arange(3))  # appends .npz to any other name
    assert np.load(tmp_path / "a.npz")["x"].tolist() == [0, 1, 2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device without room")
def test_a_full_disk_loses_no_finished_record(cfg):
    with records.open_run(cfg) as run:
        run.finish(**record())
        before = (run.path / "record.json").read_bytes()
        (run.path / ".partial-record.json").symlink_to("/dev/full")
        (run.path / "log.jsonl").symlink_to("/dev/full")
        with pytest.raises(UserError, match="record.json: cannot be written: No space left.*are kept"):
            run.finish(**record(seed=1))
        with pytest.raises(UserError, match=r"log.jsonl: cannot be written: No space left"):
            run.log("epoch")
        assert (run.path / "record.json").read_bytes() == before
        assert run.record == records.Record.model_validate(record())
        assert sorted(os.listdir(run.path)) == ["config.yaml", "lock", "log.jsonl", "record.json"]


def test_a_disk_that_is_full_only_when_synced(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left"):
        storage.write_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == []


# Reading many


def test_load_records_in_order_of_path(tmp_path):
    for name, seed in (("b", 1), ("a", 2), ("c/deep", 3)):
        (tmp_path / name).mkdir(parents=True)
        storage.write_json(tmp_path / name / "record.json", record(seed=seed))
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / ".partial-record.json").write_text("{")
    assert [run.record.seed for run in records.load_records(tmp_path)] == [2, 1, 3]


def test_folders_that_hold_no_results(tmp_path):
    with pytest.raises(UserError, match="nowhere: not a folder"):
        records.load_records(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: not a folder"):
        records.load_records(tmp_path / "file")
    with pytest.raises(UserError, match=f"{tmp_path}: holds no record.json"):
        records.load_records(tmp_path)


def stages(**changes) -> dict:
    whole = record()["stages"]
    return {**whole, "final": {**whole["final"], **changes}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"name": "x"',
        b"\xff\xfe\x00",
        json.dumps(record(seconds=float("nan"))).encode(),
        b"[]",
        b"{}",
        json.dumps(record(stages={"dense": {"top1": 1}})).encode(),
        json.dumps(record(stages=stages(top1=5))).encode(),
        json.dumps(record(stages=stages(macs=-1))).encode(),
        json.dumps(record(target="0.5")).encode(),
        json.dumps(record(widths={"dense": {"g": 0}, "final": {"g": 4}})).encode(),
    ],
)
def test_a_broken_record_is_named(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/record.json: .*again$"):
        records.load_records(tmp_path)


def test_speeds_are_read_beside_the_record(tmp_path):
    storage.write_json(tmp_path / "record.json", record())
    assert records.load_records(tmp_path)[0].speeds is None
    timing = {"latency_s": 0.5, "images_per_second": 128.0}
    speed = {"setup": {"batch": 64}, "hardware": {}, "dense": timing, "final": {**timing, "latency_s": 0.25}}
    storage.write_json(tmp_path / "speed.json", {"throughput": speed})
    assert records.load_records(tmp_path)[0].speeds.latency_kept == 0.5
    budget = {"setup": {}, "hardware": {}, "kept": 0.4}
    storage.write_json(tmp_path / "speed.json", {"throughput": speed, "budget": budget})
    assert records.load_records(tmp_path)[0].speeds.latency_kept == 0.4
    storage.write_json(tmp_path / "speed.json", {"throughput": {**speed, "dense": {**timing, "latency_s": 0.0}}})
    with pytest.raises(UserError, match="speed.json"):
        records.load_records(tmp_path)


def test_speeds_that_do_not_say_their_batch_are_measured_again(cfg):
    timing = {"latency_s": 0.5, "images_per_second": 128.0}
    records.run_path(cfg).mkdir(parents=True)
    for setup, is_timed in (({"batch": cfg.throughput.batch}, True), ({}, False)):
        speed = {"setup": setup, "hardware": {}, "dense": timing, "final": timing}
        storage.write_json(records.run_path(cfg) / records.SPEED, {"throughput": speed})
        assert records.is_timed(cfg) == is_timed


# The environment


def test_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = runtime.environment()
    assert set(found) == {"git_commit", "versions", "device", "date"}
    assert found["device"]["name"] == "cpu" and found["device"]["threads"] == 3 and found["device"]["cpu"]
    assert found["versions"]["gluoncv"].startswith("0.10.5") and found["versions"]["numpy"] == np.__version__
    assert found["git_commit"] is None or re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", found["git_commit"])


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(folder), *arguments],
        check=True,
        capture_output=True,
    )


def test_the_commit_is_of_the_checkout_that_the_package_comes_from(tmp_path, monkeypatch):
    module = tmp_path / "gcp" / "records.py"
    module.parent.mkdir()
    module.write_text("")
    monkeypatch.setattr(runtime, "__file__", str(module))
    assert runtime.environment()["git_commit"] is None  # no checkout
    git(tmp_path, "init")
    (tmp_path / "README").write_text("")
    git(tmp_path, "add", "README")
    git(tmp_path, "commit", "-m", "without the package")
    assert runtime.environment()["git_commit"] is None  # installed inside somebody's checkout
    git(tmp_path, "add", "gcp")
    git(tmp_path, "commit", "-m", "with the package")
    assert re.fullmatch("[0-9a-f]{40}", runtime.environment()["git_commit"])
    module.write_text("changed")
    assert runtime.environment()["git_commit"].endswith("+dirty")
