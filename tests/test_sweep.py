"""Sweeps beyond one machine: the same records wherever runs are computed, whatever dies, and every bad input."""

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from finished import finished

from gcp.errors import UserError
from gcp.experiment import config, record, reproduce, source, sweep
from gcp.experiment.sweep import on_dask, on_slurm, worker
from gcp.train import guard

REPO = Path(__file__).resolve().parents[1]
DEMO = REPO / "configs" / "demo"
CONFIGS = ("gcp-macs-0.05.yaml", "uniform-macs-0.05.yaml")
# As small as they get: what is compared are sums of numbers, and their order, not how good they are.
DATA = ["data.name=digits", "data.input=[3, 8, 8]", "data.n_train=96", "train.epochs=2", "throughput.repeats=1"]
SMALL = [*DATA, "throughput.batch=4", "model.name=cifar_resnet20_v1", "prune.target=0.4", "prune.round_to=4"]
# What may differ between two computations of one run: how long it took, when it was, and where its folder is.
CLOCK, PLACE = ("seconds", "date"), ("output",)


def started(*command, **how):
    return subprocess.Popen([*map(str, command)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


def sweeping(configs, output, *options, **how):
    """scripts/reproduce.py on the small versions of some experiments."""
    command = [sys.executable, REPO / "scripts" / "reproduce.py", configs, "--overlay", REPO / "configs" / "smoke.yaml"]
    return started(*command, *options, "--set", *SMALL, f"output={output}", **{"cwd": REPO, **how})


def finish(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def until(happens, seconds=120, process=None):
    end = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return found


def numbers(value, apart):
    """A record without what may differ."""
    if isinstance(value, dict):
        return {k: numbers(v, apart) for k, v in value.items() if k not in apart}
    return [numbers(v, apart) for v in value] if isinstance(value, list) else value


def compared(output):
    """Every run below a folder: its record without what may differ, and its final network's bytes."""
    runs = {path.parent.name: path.parent for path in Path(output).glob("*/record.json")}
    return {
        name: (
            numbers(json.loads((path / "record.json").read_text()), CLOCK + PLACE),
            (path / "final-0000.params").read_bytes(),
        )
        for name, path in runs.items()
    }


class Cluster:
    """dask's scheduler and workers by the commands of docs/scale.md, on the loopback interface."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.folder, self.processes = folder, {}
        self.start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", self.address.rpartition(":")[2])

    def start(self, name, verb, *options, **how):
        with open(self.folder / f"{name}.log", "w") as log:
            command = [sys.executable, "-m", "dask", verb, *options, "--no-dashboard"]
            environment = {**os.environ, "PYTHONPATH": str(REPO), **how.pop("env", {})}
            how = {"cwd": self.folder, **how}
            self.processes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, **how)

    def worker(self, name, *options, **how):
        place = ["--local-directory", str(self.folder / "scratch")]
        self.start(name, "worker", f"tcp://{self.address}", "--name", name, "--no-nanny", *place, *options, **how)

    def runs(self):
        """The workers in whose processes a run is under way."""
        for name, process in self.processes.items():
            for child in psutil.Process(process.pid).children() if process.poll() is None else ():
                with contextlib.suppress(psutil.Error):  # it has just ended
                    if "gcp.train.guard" in child.cmdline():
                        yield name


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    yield made
    for process in made.processes.values():
        process.kill()
        process.wait()


@pytest.fixture
def configs(tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    for name in ("_base.yaml", *CONFIGS):
        shutil.copy(DEMO / name, folder)
    return folder


@pytest.mark.slow
def test_the_records_are_those_of_a_local_sweep_whoever_watches_and_whichever_worker_is_killed(
    cluster, configs, tmp_path
):
    for number in range(4):
        cluster.worker(f"w{number}", "--nthreads", "2", "--resources", "cores=1")
    options = ("--on", f"dask://{cluster.address}", "--seeds", "0,1")
    until(lambda: (cluster.folder / "w3.log").read_text().count("Registered to"))

    watching = sweeping(configs, tmp_path / "dask", *options)
    until(lambda: list(cluster.runs()), process=watching)
    watching.send_signal(signal.SIGINT)
    code, _, err = finish(watching)
    assert code == 130 and "tasks continue" in err.splitlines()[-1] and "Traceback" not in err, err

    watching = sweeping(configs, tmp_path / "dask", *options)
    until(lambda: list(tmp_path.glob("dask/dense-*/log.jsonl")), process=watching)
    killed = until(lambda: next(cluster.runs(), None), process=watching)
    cluster.processes[killed].send_signal(signal.SIGKILL)
    code, _, err = finish(watching)
    assert code == 0, err
    assert "run [1/" in err and "min left in all" in err and "dask's dashboard: http://" in err
    assert err.count("speeds are measured on the worker") == 1 and err.count("measure [") == 4

    code, _, err = finish(sweeping(configs, tmp_path / "local", "--seeds", "0,1", "--jobs", "2"))
    assert code == 0, err
    assert len(compared(tmp_path / "local")) == 4
    assert compared(tmp_path / "dask") == compared(tmp_path / "local")
    for log in tmp_path.glob("dask/*/log.jsonl"):
        stages = [line["stage"] for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "stage"]
        assert len(stages) == len(set(stages)), "computed twice"

    code, _, err = finish(sweeping(configs, tmp_path / "dask", *options))
    assert code == 0 and "4 experiments, 4 already done" in err and "run [" not in err


@pytest.mark.slow
def test_runs_are_fetched_from_workers_that_share_no_folder_and_cancelled_ones_end(cluster, configs, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    options = ("--on", f"dask://{cluster.address}", "--collect")
    cluster.worker("w0", "--nthreads", "1", cwd=tmp_path / "elsewhere")
    until(lambda: "Registered to" in (cluster.folder / "w0.log").read_text())
    code, _, err = finish(sweeping(configs / CONFIGS[1], tmp_path / "fetched", *options))
    assert code == 0, err
    code, _, err = finish(sweeping(configs / CONFIGS[1], tmp_path / "local"))
    assert code == 0, err
    assert compared(tmp_path / "fetched") == compared(tmp_path / "local")
    (folder,) = (path.parent for path in tmp_path.glob("fetched/*/record.json"))
    assert json.loads((folder / "record.json").read_text())["config"]["output"] == str(tmp_path / "fetched")
    assert (folder / "speed.json").exists() and list(tmp_path.glob("fetched/dense-*/dense-0000.params"))
    same = (tmp_path / "local" / folder.name / "config.yaml").read_text().replace("/local", "/fetched")
    assert (folder / "config.yaml").read_text() == same

    watching = sweeping(configs, tmp_path / "ended", *options, "--seeds", "0,1")
    until(lambda: list(cluster.runs()), process=watching)
    watching.send_signal(signal.SIGINT)
    assert finish(watching)[0] == 130 and list(cluster.runs())
    code, out, err = finish(sweeping(configs, tmp_path / "ended", *options, "--seeds", "0,1", "--cancel"))
    assert code == 0 and re.match("[1-4] tasks cancelled", out), err  # those that had been handed over
    until(lambda: not list(cluster.runs()), seconds=30)


@pytest.mark.slow
def test_real_workers_that_cannot_be_used_are_named(cluster, configs, tmp_path):
    options = ("--on", f"dask://{cluster.address}")
    until(lambda: "Scheduler at" in (cluster.folder / "scheduler.log").read_text())
    code, _, err = finish(sweeping(configs, tmp_path / "out", *options))
    assert (code, err.count("error:")) == (2, 1) and "has no workers" in err and "Traceback" not in err
    shutil.copytree(REPO / "gcp", tmp_path / "other" / "gcp", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "other" / "gcp" / "errors.py", "a") as file:
        file.write("# changed\n")
    cluster.worker("old", "--nthreads", "1", env={"PYTHONPATH": str(tmp_path / "other")})
    until(lambda: "Registered to" in (cluster.folder / "old.log").read_text())
    code, _, err = finish(sweeping(configs, tmp_path / "out", *options))
    assert (code, err.count("error:")) == (2, 1) and "the worker old" in err and "a different gcp package" in err


# ---- bad input, without a cluster ------------------------------------------------------------------------------------


SETUP = sweep.Setup(REPO / "scripts" / "run.py")


def refused(address, setup=SETUP):
    with pytest.raises(UserError) as caught:
        sweep.engine(address, setup)
    return caught.value


@pytest.mark.parametrize(
    ("address", "setup", "key"),
    [
        ("dusk://a:1", SETUP, ""),
        ("local://a", SETUP, "sweep.address"),
        ("slurm://a", SETUP, "sweep.address"),
        ("dask", SETUP, "sweep.address"),
        ("dask://a b:1", SETUP, "sweep.address"),
        ("dask://a:99999", SETUP, "sweep.address"),
        ("dask://127.0.0.1:1", SETUP, "sweep.connect"),
        ("dask://127.0.0.1:1", SETUP._replace(jobs=2), "sweep.jobs"),
        ("local", SETUP._replace(collect=True), "sweep.collect"),
        ("slurm", SETUP._replace(collect=True), "sweep.option"),
        ("slurm", SETUP._replace(jobs=2), "sweep.option"),
        ("slurm", SETUP, "sweep.sbatch"),
    ],
)
def test_addresses_and_options_that_cannot_be(address, setup, key, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert refused(address, setup).key == key


def test_something_else_than_a_scheduler_answers(monkeypatch):
    monkeypatch.setattr(on_dask, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert refused(f"dask://127.0.0.1:{server.getsockname()[1]}").key == "sweep.connect"


@pytest.mark.parametrize(("address", "module"), [("dask://a:1", "distributed"), ("slurm", "submitit")])
def test_without_the_extra_one_line_says_what_to_install(address, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    error = refused(address)
    assert error.key == "sweep.extra" and f"'.[{address[:5].strip(':/')}]'" in str(error)


def task(name="uniform-macs-0.05.yaml", *sets, timed=False):
    return sweep.Task(DEMO / name, tuple(sets), (), config.load(DEMO / name, sets), timed)


class Scheduler:
    """What the engine asks dask's client before it hands over anything; `state` changes what its one worker says."""

    dashboard_link = "http://here"

    def __init__(self, source_there=None, sees=(), **state):
        mine = {"source": source.fingerprint()}
        self.there, self.missing = source_there or mine["source"], list(sees)
        self.worker = {"name": "w0", "version": "1", "cores": 4, "resources": {}, "executing": [], **mine, **state}

    def run_on_scheduler(self, function):
        return self.there

    def run(self, function, *args, on_error="raise"):
        return {"tcp://w": self.missing if function is on_dask.sees else self.worker}


@pytest.mark.parametrize(
    ("scheduler", "given", "key"),
    [
        (Scheduler(), task(), None),
        (Scheduler(resources={"cores": 2}), task("uniform-macs-0.05.yaml", "threads=2"), None),
        (Scheduler(source_there="0"), task(), "sweep.version"),
        (Scheduler(source="0"), task(), "sweep.version"),
        (Scheduler(cores=1), task("uniform-macs-0.05.yaml", "threads=2"), "sweep.place"),
        (Scheduler(resources={"cores": 2}), task("uniform-macs-0.05.yaml", "threads=3"), "sweep.place"),
        (Scheduler(resources={"cores": 2}), task("uniform-macs-0.05.yaml", "gpus=[0]"), "sweep.place"),
        (Scheduler(resources={"cores": 2}), task("uniform-macs-0.05.yaml", "threads=0"), "sweep.threads"),
        (Scheduler(sees=["/there/.sweep-x"]), task(), "sweep.folder"),
    ],
)
def test_workers_that_do_not_fit_are_refused_before_anything_runs(scheduler, given, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = on_dask.Dask.__new__(on_dask.Dask)
    engine.client, engine.address, engine.shared, engine._states = scheduler, "dask://a:1", True, {}
    if key is None:
        return engine.check([given])
    with pytest.raises(UserError) as caught:
        engine.check([given])
    assert caught.value.key == key and (key != "sweep.folder" or "/there" in str(caught.value))


def test_a_run_that_starts_from_another_needs_the_shared_folder():
    path = REPO / "configs" / "caltech256" / "table6" / "gcp-macs-0.29.yaml"
    engine = on_dask.Dask.__new__(on_dask.Dask)
    engine.client, engine.address, engine.shared, engine._states = Scheduler(), "dask://a:1", False, {}
    with pytest.raises(UserError) as caught:
        engine.check([sweep.Task(path, (), (), config.load(path))])
    assert caught.value.key == "sweep.collect"


# ---- what is sent, and what comes back -------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_sent_is_plain_data_and_means_the_same_configuration(tmp_path):
    paths = [p for p in sorted(REPO.glob("configs/*/**/*.yaml")) if not p.name.startswith("_")]
    for path in paths:
        cfg = config.load(path)
        if cfg.model.is_pattern or cfg.prune.latency_model or path.parent.name == "figure1":
            continue
        job = sweep.Task(path, (), (), cfg).job(placed=False, shared=True)
        assert json.loads(json.dumps(job)) == job
        (tmp_path / f"{path.stem}.yaml").write_text(job["config"])
        there = config.load(tmp_path / f"{path.stem}.yaml")
        assert there == cfg and there.fingerprint() == job["fingerprint"], path


def test_the_same_work_has_one_key_and_is_handed_over_once():
    one, again, other = (task("uniform-macs-0.05.yaml", *sets) for sets in ([], ["gpus=[0]"], ["output=there"]))
    assert one.key == again.key != other.key and one.key != task(timed=True).key
    items = [(DEMO / CONFIGS[1], [], one.cfg)] * 2
    assert len(reproduce._tasks(items, ())) == 1


def test_each_output_has_a_report_of_its_own(tmp_path, monkeypatch):
    """Also where the outputs' last folders have the same name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for name in ("a", "b"):
        values = {"scale": "smoke", "model": {"name": "resnet18_v1b"}, "data": {"name": "digits"}}
        text = yaml.safe_dump({**values, "train": {"epochs": 1}, "output": f"results/{name}/runs"})
        (tmp_path / "configs" / f"{name}.yaml").write_text(text)
    commands = []
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: 0)
    monkeypatch.setattr(guard, "call", lambda command: commands.append(command[2:]) or 0)
    run = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "reproduce.py"))["run"]
    run(["configs", "--report", "report"])
    assert commands == [[f"results/{name}/runs", "--output", f"report/{name}/runs"] for name in ("a", "b")]
    commands.clear()
    run(["configs/a.yaml", "--report", "report"])
    run(["configs/a.yaml"])
    assert commands == [["results/a/runs", "--output", "report"], ["results/a/runs"]]


def test_gpus_of_a_worker_go_to_one_run_at_a_time(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    with worker._gpus(2) as first, worker._gpus(1) as second, worker._gpus(0) as none:
        assert [first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"], none] == ["4,5", "7", {}]
    with worker._gpus(1) as again:
        assert again["CUDA_VISIBLE_DEVICES"] == "4"
    placed = task("uniform-macs-0.05.yaml", "gpus=[2, 3]", "data.batch=64").job(placed=True, shared=True)
    assert yaml.safe_load(placed["config"])["gpus"] == [0, 1] and placed["gpus"] == 2


def test_names_that_lead_out_of_a_run_are_not_written():
    assert worker._is_brought("final-0000.params") and worker._is_brought("log.jsonl")
    for name in ("../x", "a/b", ".partial-x", "lock", "x.states", "", "config.yaml"):
        assert not worker._is_brought(name)


def test_a_run_that_is_only_partly_received_is_not_done(tmp_path, monkeypatch):
    given = task("uniform-macs-0.05.yaml", f"output={tmp_path}")
    content = finished().record.model_copy(update={"fingerprint": given.cfg.fingerprint()}).model_dump_json().encode()
    files = {"run": {record.RECORD: content, "final.json": b"{}"}, "dense": {"dense.json": b"{}"}}

    def killed(path, content):
        if path.name == "dense.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(worker, "_write", killed)
        worker.receive(given, files)
    assert not record.is_done(given.cfg)
    worker.receive(given, files)
    assert record.is_done(given.cfg) and (record.dense_path(given.cfg) / "dense.json").exists()


# ---- SLURM, by submitit's other executors ----------------------------------------------------------------------------


def ended(engine):
    """All that an engine tells until its tasks have ended."""
    events = []
    until(lambda: events.extend(engine.poll()) or not engine._watched, seconds=300)
    return [event for event in events if isinstance(event, sweep.Ended)]


# submitit's stand-in leaves its logs open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_job_that_the_user_got_wrong_is_not_queued_again(tmp_path, monkeypatch):
    monkeypatch.setattr(on_slurm.Slurm, "CLUSTER", "debug")
    calls = []
    result = {"code": 2, "where": "node", "said": ["error: so"]}
    monkeypatch.setattr(on_slurm, "execute", lambda *args: calls.append(args) or result)
    engine = sweep.engine("slurm", SETUP)
    given = task("uniform-macs-0.05.yaml", f"output={tmp_path}")
    engine.check([given])
    engine.submit(given)
    assert len(list((tmp_path / "slurm").glob("*.json"))) == 1
    assert [event[1:] for event in ended(engine)] == [(2, ["error: so"])] and len(calls) == 1
    assert not list((tmp_path / "slurm").glob("*.json")) and calls[0][0]["gpus"] == 0


@pytest.mark.slow
def test_jobs_of_submitit_make_records(tmp_path, monkeypatch):
    monkeypatch.setattr(on_slurm.Slurm, "CLUSTER", "local")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    engine = sweep.engine("slurm", SETUP)
    small = [*SMALL, f"output={tmp_path}", "train.epochs=1", "finetune.epochs=1"]
    given = task("uniform-macs-0.05.yaml", *small)
    for timed in (False, True):
        if timed:
            engine.alone()
        engine.submit(sweep.Task(given.path, given.overrides, (), given.cfg, timed))
        assert [event[1:] for event in ended(engine)] == [(0, [])]
    assert record.is_done(given.cfg) and record.is_timed(given.cfg)
