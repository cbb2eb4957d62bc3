"""Several workers against one process, and a job that loses processes against one that does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import parallel_job as job
import pytest
from mxnet import autograd

from gcp.backend.blocks import to_block
from gcp.graph.network import auxiliary
from gcp.train import distributed
from tests.test_experiment import REPO, TINY, numbers

JOB = str(REPO / "tests" / "parallel_job.py")


def start(*args, **environment):
    paths = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, str(REPO / "scripts" / "launch.py"), *map(str, args)],
        cwd=REPO,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two workers computed: a dictionary each."""
    folder = tmp_path_factory.mktemp("two")
    code, _, err = finish(start("--workers", 2, "--restarts", 0, "--", JOB, folder))
    assert code == 0, err
    return folder, [dict(np.load(folder / f"results-{rank}.npz")) for rank in (0, 1)]


@pytest.mark.slow
def test_sums_are_exact_and_workers_equal(two):
    folder, (zero, one) = two
    assert zero["wrong"] == one["wrong"] == 0
    assert all(np.array_equal(zero[k], one[k]) for k in zero)
    for rank in (0, 1):
        assert (
            (folder / f"unequal-{rank}")
            .read_text()
            .startswith("t, step 7 of 7: the parameters of worker 1 of 2 differ from those of worker 0;")
        )


@pytest.mark.slow
def test_two_workers_do_what_one_does_on_the_joined_batch(two, tmp_path):
    """Regularising, training with frozen statistics or without batch norm, scores, evaluation."""
    for name, value in job.results(tmp_path).items():
        np.testing.assert_allclose(
            two[1][0][name],
            value,
            rtol=1e-6 if name.startswith("tested") else 0,
            atol=1e-6 * max(1.0, np.abs(value).max()),
            err_msg=name,
        )


@pytest.mark.slow
def test_with_batch_norm_each_part_has_its_own_statistics(two):
    """Against two halves one after the other: gradients summed, running statistics averaged."""
    net, half = job.NET, job.BATCH // 2
    blocks = [to_block(net), to_block(net)]
    params = [block.collect_params() for block in blocks]
    velocity = {k: 0.0 for k, p in params[0].items() if p.grad_req != "null"}
    epochs = (b for epoch in (0, 1) for b in job.DIGITS.train.batches(job.BATCH, seed=(1, epoch), augment="crop_flip"))
    for _, (x, y, _) in zip(range(job.N_STEPS), epochs):
        for rank, block in enumerate(blocks):
            part = slice(rank * half, (rank + 1) * half)
            with autograd.record():
                loss = mx.gluon.loss.SoftmaxCELoss()(block(mx.nd.array(x[part])), mx.nd.array(y[part]))
            loss.backward()
        mx.nd.waitall()
        for k in velocity:
            gradient = (params[0][k].grad().asnumpy() + params[1][k].grad().asnumpy()) / job.BATCH
            value = params[0][k].data().asnumpy()
            velocity[k] = 0.9 * velocity[k] - 0.01 * (gradient + (1e-3 * value if k.endswith("weight") else 0.0))
            for p in params:
                p[k].set_data(mx.nd.array(value + velocity[k]))
    moving = auxiliary(net)
    for k in net.arrays:
        value = sum(p[k].data().asnumpy() for p in params) / 2
        assert k in moving or np.array_equal(value, params[0][k].data().asnumpy())
        np.testing.assert_allclose(
            two[1][0][f"normed:{k}"], value, rtol=0, atol=1e-5 * max(1.0, np.abs(value).max()), err_msg=k
        )


def test_a_single_process_is_left_alone():
    group, array = distributed.SingleProcess(), mx.nd.array([1.0, 2.0])
    group.all_reducer([array])()
    group.averager([array])()
    assert array.asnumpy().tolist() == [1, 2] and group.all_reduce_floats([1, 2.5]).tolist() == [1, 2.5]
    assert group.broadcast(lambda: 3) == 3
    assert isinstance(distributed.process_group(), distributed.SingleProcess)


# ---- recovery -----------------------------------------------------------------------------------------------------


def alive(mark):
    """Processes that were started with this word in their environment: pid -> the rest of it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # ended, or somebody else's
            continue
        if f"GCP_TEST_MARK={mark}" in variables:
            found[int(path.parent.name)] = dict(v.split("=", 1) for v in variables if "=" in v)
    return found


def wait_for(process, there):
    until = time.monotonic() + 120
    while not there():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.slow
def test_a_job_that_loses_a_worker_ends_with_the_same_record(tmp_path):
    """Once as two local workers; once over ssh with a server on each machine, where a worker is killed in an epoch."""
    config_file = tmp_path / "gcp small.yaml"  # a path that needs quoting
    config_file.write_text(
        TINY.replace("n_train: 500", "n_train: 150")
        .replace("epochs: 4", "epochs: 2")
        .replace("iterations: 2,", "iterations: 1, method: gcp, target: 0.5,")
        + "name: small\n"
    )
    folders = [tmp_path / "whole", tmp_path / "killed"]
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\nexec sh -c "$2"\n')  # OPTIONS HOST SCRIPT
    ssh.chmod(0o755)
    command = ["--", JOB, "--run", config_file, "--untimed", "--set"]
    code, _, err = finish(start("--workers", 2, "--restarts", 0, *command, f"output={folders[0]}"))
    assert code == 0, err

    mark = f"{os.getpid()}-{tmp_path.name}"
    killed = start(
        "--hosts",
        "localhost,127.0.0.1",
        "--ssh",
        f"{ssh} -p 22",
        "--restarts",
        1,
        *command,
        f"output={folders[1]}",
        GCP_TEST_MARK=mark,
        DMLC_INTERFACE="lo",
    )
    wait_for(killed, lambda: list(folders[1].glob("dense-*/dense.checkpoint")))
    worker = [
        pid
        for pid, environment in alive(mark).items()
        if environment.get("GCP_RANK") == "1" and "gcp.train.guard" not in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    os.kill(worker[0], signal.SIGKILL)
    code, _, err = finish(killed)
    assert code == 0, err
    assert "worker 1 on 127.0.0.1 exited with code 137; restarting from the last checkpoint" in err
    assert not alive(mark)
    one, two = (json.loads(next(f.glob("small-*/record.json")).read_text()) for f in folders)
    assert numbers(one) == numbers(two)
    assert one["config"]["workers"] == 2 and one["fingerprint"] == two["fingerprint"]
