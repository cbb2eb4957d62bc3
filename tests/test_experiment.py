"""The whole path through the scripts, as a user runs them: records, resuming after SIGKILL, bad input."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from mutations import tried

from gcp.experiment.record import load_records

REPO = Path(__file__).resolve().parents[1]
TINY = """
scale: smoke
threads: 1
model: {name: cifar_resnet20_v1}
data: {name: digits, input: [3, 8, 8], batch: 16, n_train: 500}
train: {epochs: 4, lr: 0.05}
prune: {round_to: 4, gcp: {iterations: 2}}
finetune: {epochs: 4, lr: 0.05}
throughput: {batch: 8, repeats: 2}
"""
METHODS = {
    "gcp-macs": "{method: gcp, objective: macs, target: 0.4}",
    "gcp-params": "{method: gcp, objective: params, target: 0.4, gcp: {score: paper}}",
    "uniform-macs": "{method: uniform, objective: macs, target: 0.4}",
    "uniform-random": "{method: uniform, objective: macs, target: 0.4, uniform: {criterion: random}}",
    "none": "{method: none}",
}


def script(name, *args, **how):
    return subprocess.Popen(
        [sys.executable, str(REPO / "scripts" / name), *map(str, args)],
        cwd=REPO,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **how,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def epochs(log):
    """What a log says of epochs, but for the clock's words."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(x["images_per_second"] > 0 and x["seconds"] > 0 for x in lines if x["event"] == "epoch")
    return [(x["stage"], x["epoch"], x["step"], x["training_loss"], x["lr"]) for x in lines if x["event"] == "epoch"]


def numbers(record):
    """A record without what a clock or a calendar says."""
    if isinstance(record, dict):
        return {
            k: numbers(v)
            for k, v in record.items()
            if k not in ("seconds", "throughput", "latency_kept", "date", "git_commit", "config")
        }
    return [numbers(v) for v in record] if isinstance(record, list) else record


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "_base.yaml").write_text(TINY)
    for name, prune in METHODS.items():
        (folder / f"{name}.yaml").write_text(f"base: _base.yaml\nprune: {prune}\n")
    return folder


@pytest.fixture(scope="module")
def reproduced(configs, tmp_path_factory):
    """All methods, two at once, then their speeds and the report: one reproduction of the folder."""
    output = tmp_path_factory.mktemp("results")
    code, out, err = finish(script("reproduce.py", configs, "--jobs", 2, "--set", f"output={output}"))
    assert code == 0, err
    return output, out, err


@pytest.mark.slow
def test_every_method_gives_a_whole_record_and_the_report_shows_it(reproduced):
    output, out, _ = reproduced
    runs = {run.record.name: run for run in load_records(output)}
    assert set(runs) == set(METHODS)
    assert len({json.dumps(numbers(run.record.stages.dense.model_dump())) for run in runs.values()}) == 1
    assert len(list(output.glob("dense-*"))) == 1, "the shared dense network is trained once"
    for name, (_, record, speeds) in runs.items():
        kept = record.params_kept if "params" in name else record.macs_kept
        assert kept == 1 if name == "none" else 0.25 < kept <= 0.4
        assert record.stages.final.n_eval == 359 and record.stages.final.epochs == 4
        assert (record.images_before_finetune > 0) == (name != "none"), "statistics after the cut, at least"
        assert record.stages.final.top1 > 0.3, "ten classes, trained"
        assert all(n % 4 == 0 for n in record.widths.final.values())
        assert speeds.throughput.final.images_per_second > 0
    for word in ("GCP-f", "GCP-p", "Uniform (L1)", "Uniform (random)", "accuracy_throughput.png"):
        assert word in out


@pytest.mark.slow
def test_a_second_reproduction_runs_nothing(reproduced, configs):
    output, _, _ = reproduced
    before = {p: p.stat().st_mtime_ns for p in output.glob("*/*") if p.suffix != ".lock" and p.parent.name != "report"}
    code, _, err = finish(script("reproduce.py", configs, "--set", f"output={output}"))
    assert code == 0 and f"{len(METHODS)} experiments, {len(METHODS)} already done" in err
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_numbers(reproduced, configs, tmp_path):
    whole = json.loads(next(reproduced[0].glob("gcp-macs-*/record.json")).read_text())
    args = ("run.py", configs / "gcp-macs.yaml", "--set", f"output={tmp_path}")
    # Killed as soon as each of these is there: in dense training, in both phases of both iterations, in fine-tuning.
    for stage in (
        "*/lock",
        "dense-*/dense.json",
        "*/gcp-1-regularise.json",
        "*/gcp-1-recover.json",
        "*/gcp-2-regularise.json",
        "*/pruned.json",
    ):
        process = script(*args)
        while not list(tmp_path.glob(stage)) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        finish(process)
        assert not list(tmp_path.glob("gcp-*/record.json"))
    code, _, err = finish(script(*args))
    assert code == 0, err
    resumed = json.loads(next(tmp_path.glob("gcp-*/record.json")).read_text())
    assert numbers(resumed) == numbers(whole)
    # Each epoch is in its log once, with the numbers of the run that nobody killed.
    for folder, stages in (
        ("dense-*", {"dense": 4}),
        ("gcp-*", {"final": 4, **{f"gcp-{t}-{phase}": 1 for t in (1, 2) for phase in ("regularise", "recover")}}),
    ):
        logs = [
            epochs(next(root.glob(f"{folder.replace('gcp-', 'gcp-macs-')}/log.jsonl")))
            for root in (reproduced[0], tmp_path)
        ]
        assert sorted(logs[0]) == sorted(logs[1])
        assert sorted(line[:2] for line in logs[1]) == sorted(
            (s, n) for s, last in stages.items() for n in range(1, last + 1)
        )


@pytest.mark.slow
def test_the_whole_recipe_from_a_configuration(tmp_path):
    """Every key of the recipe reaches the loop; the dense network teaches the pruned one; teachers that do not fit."""
    from gcp import errors
    from gcp.data.datasets import load
    from gcp.experiment import config, plan
    from gcp.experiment import run as experiment_run
    from gcp.seeds import Stream

    (tmp_path / "c.yaml").write_text(TINY)
    cfg = config.load(
        tmp_path / "c.yaml",
        [
            f"output={tmp_path}",
            "data.n_train=64",
            "train={epochs: 3, lr: 0.1, schedule: step, step_epochs: [1, 2], "
            "step_factor: 0.5, mixup: 0.2, last_gamma_zero: true}",
            "finetune={epochs: 1, teacher: dense, teacher_weight: 1.0}",
        ],
    )
    data = load(cfg.data, cfg.seed)
    start, _ = plan.plan(cfg, data)
    assert (start.arrays["stage1_batchnorm1_gamma"] == 0).all() and (start.arrays["batchnorm0_gamma"] == 1).all()
    dense, facts = experiment_run.dense_network(cfg, data, start)
    log = next(tmp_path.glob("dense-*/log.jsonl"))
    assert [(stage, epoch, lr) for stage, epoch, _, _, lr in epochs(log)] == [
        ("dense", 1, 0.1),
        ("dense", 2, 0.05),
        ("dense", 3, 0.025),
    ]
    assert json.loads(log.read_text().splitlines()[-1])["validation_top1"] == facts["validation_top1"]
    said = []
    experiment_run.train(
        dense, data, cfg, cfg.finetune, Stream.FINETUNE, tmp_path / "x", lambda event, **row: said.append(row), dense
    )
    assert [row["stage"] for row in said] == ["final", "final"]
    experiment_run.train(
        dense,
        data,
        cfg,
        cfg.finetune.model_copy(update={"teacher": None}),
        Stream.FINETUNE,
        tmp_path / "x",
        lambda event, **row: said.append(row),
    )
    assert said[0]["training_loss"] < 0.5 * said[2]["training_loss"], "it starts as its own teacher"
    other = cfg.finetune.model_copy(update={"teacher": str(next(tmp_path.glob("dense-*")) / "dense")})
    assert plan.teacher(other, data).net.name == "cifar_resnet20_v1"
    data = dataclasses.replace(data, classes=data.classes[:4])
    with pytest.raises(errors.UserError, match="dense' has 10 classes, but data 'digits' has 4; name a network that"):
        plan.teacher(other, data)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_to_resume(configs, tmp_path, number):
    process = script("run.py", configs / "none.yaml", "--set", f"output={tmp_path}", "train.epochs=5000")
    until(lambda: list(tmp_path.glob("none-*/lock")), process)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number, err
    assert "run the same command again to resume" in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_a_reproduction(configs, tmp_path, number):
    """Also where nobody is left to end them. The second process waits for the dense network that the first trains."""
    process = script(
        "reproduce.py", configs, "--jobs", 2, "--set", f"output={tmp_path}", "train.epochs=5000", start_new_session=True
    )
    until(lambda: len(list(tmp_path.glob("[gnu]*/lock"))) == 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4, "two guards and two experiments"
    process.send_signal(number)
    code, _, err = finish(process)
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert "Traceback" not in err
    if number == signal.SIGTERM:
        assert code == 143 and err.count("run the same command again to resume") == 1


def until(happens, process):
    """Wait for something that a process does."""
    while not happens():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.slow
def test_runs_are_timed_by_their_widths_where_their_networks_are_not(reproduced, tmp_path):
    """A run that was moved is left out, and so is one that was timed."""
    for name, output in (("gcp-macs-", tmp_path), ("uniform-macs-", tmp_path), ("uniform-random-", reproduced[0])):
        folder = next(reproduced[0].glob(f"{name}*"))
        copy = tmp_path / folder.name
        copy.mkdir()
        (copy / "record.json").write_text((folder / "record.json").read_text())
        text = (folder / "config.yaml").read_text().replace(str(reproduced[0]), str(output))
        (copy / "config.yaml").write_text(text)
    timed = shutil.copy(reproduced[0] / next(tmp_path.glob("uniform-macs*")).name / "speed.json", tmp_path)
    shutil.move(timed, next(tmp_path.glob("uniform-macs*")))
    code, out, err = finish(script("leaderboard.py", tmp_path, "--time", 1, "--baseline", "uniform-macs"))
    assert code == 0, err
    assert len(list(tmp_path.glob("*/speed.json"))) == 2
    speeds = json.loads(next(tmp_path.glob("gcp-macs-*/speed.json")).read_text())["throughput"]
    assert speeds["setup"]["batch"] == 8 and speeds["final"]["latency_s"] > 0


@pytest.mark.slow
def test_saved_networks_evaluate_to_the_record(reproduced):
    folder = next(reproduced[0].glob("gcp-macs-*"))
    code, out, err = finish(script("evaluate.py", folder / "final", "--data", "digits"))
    assert code == 0, err
    final = json.loads((folder / "record.json").read_text())["stages"]["final"]
    assert {k: json.loads(out)[k] for k in ("top1", "top5", "n_eval", "macs", "params")} == {
        k: final[k] for k in ("top1", "top5", "n_eval", "macs", "params")
    }


@pytest.mark.parametrize(
    "name, args, message",
    [
        ("run.py", ["{configs}/gcp-macs.yaml", "--set", "prune.target=0.0001"], "at least 0."),
        ("run.py", ["{configs}/gcp-macs.yaml", "--set", "prune.target=1.5"], "prune.target"),
        ("run.py", ["{configs}/gcp-macs.yaml", "--set", "prune.tarvet=0.5"], "prune.target"),
        ("run.py", ["{configs}/gcp-macs.yaml", "--set", "model.name=resnet18_v9"], "resnet18_v"),
        ("run.py", ["{configs}/gcp-macs.yaml", "--set", "data.name=folder", "--set", "data.root=/no/such"], "/no/such"),
        ("run.py", ["{configs}/nothing.yaml"], "nothing.yaml"),
        ("run.py", ["{configs}/gcp-macs.yaml", "--set", "train.teacher=no/such"], "no/such"),
        ("run.py", ["{configs}/gcp-macs.yaml", "--set", "finetune.dtype=float16"], "dtype: float16 needs a GPU"),
        ("run.py", ["{configs}/none.yaml", "--set", "workers=2"], "2 requested, but 1 started"),
        ("launch.py", ["--workers", "0", "--", "run.py"], "argument --workers: '0' must be"),
        ("evaluate.py", ["{configs}/none", "--data", "digits"], "not a saved network"),
        ("evaluate.py", ["resnet18_v1b", "--data", "digitz"], "digits"),
        ("describe.py", ["resnet18_v1b", "--input", "3,32"], "argument --input: '3,32' must be"),
        ("describe.py", ["resnet18_v1b", "--classes", "ten"], "--classes"),
        ("reproduce.py", [], "configs"),
        ("reproduce.py", ["{configs}/absent"], "absent"),
        ("report.py", ["{configs}"], "record.json"),
        (
            "latency.py",
            ["measure", "resnet18_v1b", "--runtime", "tensorrt"],
            "choose from mxnet, mxnet-int8, onnxruntime",
        ),
        ("latency.py", ["measure", "resnet18_v1b", "--device", "gpu(3)"], "MXNet can use cpu"),
        ("latency.py", ["measure", "resnet18_v1b", "--dtype", "float16"], "only in float32"),
        ("latency.py", ["sample", "resnet18_v1b"], "--out"),
        ("latency.py", ["fit", "{configs}/absent", "--out", "{configs}/x.json"], "absent"),
        ("latency.py", ["validate", "{configs}/_base.yaml", "--held-out", "{configs}/x"], "give a latency model"),
        ("latency.py", ["predict", "{configs}/_base.yaml", "resnet18_v1b"], "give a latency model"),
        ("latency.py", ["table", "{configs}"], "validation.json"),
        ("figure1.py", ["--repeats", "3"], "--measure"),
    ],
)
def test_bad_input_gets_one_line_and_exit_2(configs, tmp_path, monkeypatch, name, args, message):
    monkeypatch.chdir(REPO)
    args = [a.format(configs=configs) for a in args]
    extra = ["--set", f"output={tmp_path}"] if name == "run.py" else []
    code, _, err = tried([name, *args, *extra])
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and len(lines) == 1, err
    assert lines[0].startswith("error: ") and message in lines[0]


@pytest.mark.slow
def test_a_gpu_that_is_not_there(configs, tmp_path):
    """In a process of its own, since MXNet reads which GPUs there are as it is imported."""
    code, _, err = finish(script("run.py", configs / "none.yaml", "--set", "gpus=[0]", f"output={tmp_path}"))
    assert code == 2 and len(err.strip().splitlines()) == 1 and "this MXNet sees none" in err


@pytest.mark.slow
def test_a_latency_model_from_the_clock_to_a_prediction(tmp_path, monkeypatch):
    """sample, fit, validate, predict and table as README shows them, on a network of a millisecond."""
    monkeypatch.chdir(REPO)
    small = ["cifar_resnet20_v1", "--input", "3,8,8", "--threads", "1", "--repeats", "3"]
    for args, said in (
        (["measure", *small[:1], "cifar_resnet20_v2", *small[1:], "--json", tmp_path / "m.json"], "x the first"),
        (["sample", *small, "--n", "20", "--out", tmp_path / "s"], "20 networks"),
        (["sample", *small, "--n", "22", "--out", tmp_path / "s"], "22 networks"),
        (["fit", tmp_path / "s", "--out", tmp_path / "m"], "fitted to 22 networks"),
        (
            [
                "validate",
                tmp_path / "m",
                "--held-out",
                tmp_path / "h",
                "--n",
                "3",
                "--repeats",
                "3",
                "--again",
                tmp_path / "h2",
                "--out",
                tmp_path / "v",
            ],
            "repeat measurement",
        ),
        (["predict", tmp_path / "m", "cifar_resnet20_v1"], '"layers_by_regression": 0'),
        (["table", tmp_path], "validation.md"),
    ):
        code, out, err = tried(["latency.py", *map(str, args)])
        assert code == 0 and said in out, (args, out, err)
    assert (tmp_path / "v.validation.png").stat().st_size > 10000
    assert len(json.loads((tmp_path / "m.json").read_text())["networks"]) == 2
    assert "cifar_resnet20_v1, 8 px, batch 1" in (tmp_path / "validation.md").read_text()


def test_the_rate_of_a_shortened_training_falls_after_the_same_fractions():
    from gcp.experiment import run as experiment_run
    from gcp.train.options import Finetune

    recipe = Finetune(epochs=10, lr=1, schedule="step", step_epochs=[4, 8])
    for n_steps, falls in ((50, [20, 40]), (25, [10, 20]), (7, [2, 5])):
        schedule = experiment_run.schedule(recipe, 5, n_steps)
        rates = [schedule(i) for i in range(n_steps)]
        assert [i for i in range(1, n_steps) if rates[i] < rates[i - 1]] == falls, n_steps


@pytest.mark.slow
def test_skipped_images_are_counted_in_the_record_and_said(tmp_path, capsys):
    from gcp.experiment import config
    from gcp.experiment import record as records
    from gcp.experiment import run as experiment_run

    for split in ("train", "test"):
        for k, name in enumerate("ab"):
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(4):
                cv2.imwrite(str(tmp_path / split / name / f"{n}.png"), np.full((9, 9, 3), 90 * k + n, np.uint8))
    (tmp_path / "train" / "b" / "2.png").write_bytes(b"junk")
    cfg = config.Config.model_validate(
        {
            "name": "skip",
            "scale": "smoke",
            "output": str(tmp_path / "runs"),
            "model": {"name": "cifar_resnet20_v1"},
            "data": {"name": "folder", "root": str(tmp_path), "input": [3, 8, 8], "batch": 4, "on_bad_image": "skip"},
            "train": {"epochs": 1},
        }
    )
    record = experiment_run.run(cfg)
    said = capsys.readouterr().err
    assert record.images_skipped == 1 and record == records.load_records(tmp_path / "runs")[0].record
    assert f"warning: skipped: {tmp_path}/train/b/2.png: not an image" in said and "1 images of data 'folder'" in said


@pytest.mark.slow
def test_a_record_says_the_device_that_ran_and_tells_two_gpus_apart(tmp_path, monkeypatch):
    from gcp import runtime
    from gcp.backend import clock
    from gcp.experiment import config
    from gcp.experiment import run as experiment_run

    cfg = config.Config.model_validate(
        {
            "name": "device",
            "scale": "smoke",
            "model": {"name": "cifar_resnet20_v1"},
            "data": {"name": "digits", "input": [3, 8, 8], "n_train": 100},
            "train": {"epochs": 0},
        }
    )
    said = []
    monkeypatch.setattr(runtime, "_gpu_name", lambda number: "AB"[number])
    for device in ("gpu(0)", "gpu(1)"):
        monkeypatch.setattr(clock, "default_device", lambda: device)
        record = experiment_run.run(cfg.model_copy(update={"output": str(tmp_path / device)}))
        said.append((record.device.name, record.device.gpu))
        assert record.device.cpu and record.device.cpu_model and record.device.threads == runtime.n_threads()
    assert said == [("gpu(0)", "A"), ("gpu(1)", "B")]
