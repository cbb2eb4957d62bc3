"""Measuring: what is reported, in which order, and what noise does. Speeds themselves are for benchmarks."""

import dataclasses
import itertools
import time

import pytest
from networks import random_network

from gcp.backend import clock
from gcp.errors import UserError


@pytest.fixture(scope="module")
def net():
    return random_network("cifar_resnet20_v1")


@pytest.mark.parametrize("runtime", clock.RUNTIMES)
def test_every_runtime_runs(net, runtime):
    setup = clock.Setup(runtime, dtype=clock.RUNTIMES[runtime].dtypes("cpu")[0], batch=2)
    (row,) = clock.measure([net], setup, repeats=3, attempts=1)
    assert row["n"] >= 3 and row["images_per_second"] == pytest.approx(2 / row["latency_s"])


def test_a_processor_that_others_take_away_is_noise_however_even_the_passes(monkeypatch):
    readings = itertools.cycle([(0.0, 0.0, 0.0), (10.0, 6.0, 12.0)])  # 6 of 10 seconds were ours
    said = []
    monkeypatch.setattr(clock, "_processor_times", lambda: next(readings))
    (row,) = clock.timed(
        [lambda: time.sleep(0.002)], repeats=5, max_spread=10.0, attempts=2, warn=said.append, threads=1
    )
    assert row["noisy"] and row["attempts"] == 2 and " 40 % of a core" in said[0]
    (row,) = clock.timed([lambda: time.sleep(0.002)], repeats=5, max_spread=10.0, threads=0)
    assert not row["noisy"], "on a GPU the processor waits"


@pytest.mark.parametrize(
    "own, others, threads, lost",
    [
        (1.0, 0.0, 1, 0.0),
        (1.0, 3.0, 1, 0.0),  # four cores: three are not ours
        (0.6, 3.4, 1, 0.4),
        (1.9, 2.0, 2, 0.0),
        (1.5, 2.5, 2, 0.35),
        (3.0, 1.0, 4, 0.85),
        (1.0, 0.0, 8, 0.0),
    ],
)
def test_cores_that_others_took(monkeypatch, own, others, threads, lost):
    monkeypatch.setattr(clock.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(clock.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    found = clock._lost_cores((5.0, 7.0, 100.0), (15.0, 7.0 + 10 * own, 100.0 + 10 * (own + others)), threads)
    assert found == pytest.approx(lost)
    monkeypatch.setattr(clock.os, "sched_getaffinity", lambda pid: {0})
    assert clock._lost_cores((5.0, 0.0, 0.0), (15.0, 10.0, 50.0), 1) == 0, "others on cores that are not ours"


def test_the_system_is_read(monkeypatch):
    wall, own, everyone = clock._processor_times()
    assert 0 < own <= everyone + 0.1 or everyone == 0.0


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"runtime": "tensorrt"}, "unknown runtime 'tensorrt'; choose from mxnet, mxnet-int8, onnxruntime"),
        ({"device": "gpu(7)"}, "unknown device 'gpu\\(7\\)'; on this machine, MXNet can use cpu"),
        ({"dtype": "float16"}, "does not compute in 'float16', only in float32"),
        ({"batch": 0}, "batch 0"),
        ({"threads": 2}, "2 threads was requested, but this process has 1"),
    ],
)
def test_a_wrong_setup_says_what_there_is(wrong, message):
    with pytest.raises(UserError, match=message):
        clock.Setup(**wrong)


def test_networks_take_turns(monkeypatch):
    order = []
    monkeypatch.setattr(clock, "MIN_TIME_S", 0.0)
    monkeypatch.setattr(clock, "WARM_UP_S", 0.0)
    monkeypatch.setattr(clock, "FAST_S", 0.0)
    rows = clock.timed([lambda: order.append("a"), lambda: order.append("b")], repeats=4, max_spread=1e9)
    assert order == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 4
    assert [row["n"] for row in rows] == [4, 4] and not any(row["noisy"] for row in rows)


def test_a_fast_network_gets_a_pass_to_fill_the_caches(monkeypatch):
    order = []
    monkeypatch.setattr(clock, "MIN_TIME_S", 0.0)
    monkeypatch.setattr(clock, "WARM_UP_S", 0.0)
    clock.timed([lambda: order.append("a"), lambda: order.append("b")], repeats=2, max_spread=1e9)
    assert order[6:] == ["a", "a", "b", "b"] * 2


def test_noise_is_told_repeated_and_recorded():
    said, waits = [], iter([0.0, 0.02] * 1000)
    (row,) = clock.timed([lambda: time.sleep(next(waits))], repeats=4, max_spread=0.1, attempts=2, warn=said.append)
    assert row["noisy"] and row["attempts"] == 2 and row["spread"] > 0.1
    assert len(said) == 2 and "2 of 2" in said[0] and "noisy" in said[1]


def test_latency_is_the_median_and_spread_the_quartiles(monkeypatch):
    # when the rounds began; then start and end of each pass (the time is asked for once more when all are made)
    ticks = iter([0.0, 0.0, 5.0, 10.0, 11.0, 20.0, 22.0, 30.0])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(ticks))
    assert clock._rounds([lambda: None], 3, clock.MEDIAN, 0.0) == [{"latency_s": 2.0, "spread": 1.0, "n": 3}]


def test_passes_that_something_slowed_down_say_nothing_of_what_a_network_takes_beside_another(monkeypatch):
    """2 and 6 s, but most passes of the first and some of the second take twice as long."""
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def taking(*seconds):
        waits = itertools.cycle(seconds)
        return lambda: now.__setitem__(0, now[0] + next(waits))

    for percentiles, ratio in ((clock.UNDISTURBED, 1 / 3), (clock.MEDIAN, 4 / 6)):
        runs = [taking(2, 4, 4, 4), taking(6, 6, 12)]
        one, other = clock.timed(runs, 40, percentiles=percentiles, min_time_s=0.0, attempts=1)
        assert one["latency_s"] / other["latency_s"] == pytest.approx(ratio)


def test_the_reference_is_timed_in_turns_with_every_network(net, monkeypatch):
    order = []
    run = clock.Runtime(lambda network, setup: lambda: order.append(network.name), lambda device: ("float32",))
    monkeypatch.setitem(clock.RUNTIMES, "mxnet", run)
    for name in ("MIN_TIME_S", "WARM_UP_S", "FAST_S"):
        monkeypatch.setattr(clock, name, 0.0)
    one = clock.against_reference(dataclasses.replace(net, name="whole"), clock.Setup(), repeats=4, min_time_s=0)
    for name in ("a", "b"):
        order.clear()
        row, reference_s = one(dataclasses.replace(net, name=name))
        assert order[-8:] == ["whole", name] * 4 and row["n"] == 4 and reference_s > 0
