"""What experiments will take: counted by hand, and against what a run of them counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from networks import shape_only

from gcp import errors
from gcp.backend import zoo
from gcp.cost.base import COSTS
from gcp.experiment import config, estimate
from gcp.report import tables

REPO = Path(__file__).resolve().parents[1]
TABLE3 = REPO / "configs" / "imagenet" / "table3"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(REPO)


def test_table3_by_hand():
    ours, uniform = estimate.forecast([config.load(TABLE3 / f"{m}-macs-0.29.yaml") for m in ("gcp", "uniform")])
    # 1,281,167 images less a hundredth; batches of 256, the last one filled up; 200 epochs.
    n = 1_281_167 - 12_812
    batches = 4955
    assert batches == -(-n // 256)
    assert uniform.images_finetune == ours.images_finetune == 200 * batches * 256
    assert uniform.images_dense == 0, "nothing to train before: weights are published"
    assert uniform.images_prune == 512, "statistics after the cut: two batches"
    # Four iterations of one epoch with and one without penalty; a tenth of the images in batches of 16 to score; a cut.
    assert ours.images_prune == 4 * (2 * batches * 256 + (-(-n // 16) // 10) * 16 + 512)
    net = shape_only("resnet50_v1d")
    assert 0.285 < uniform.macs / COSTS["macs"](net)(net.widths) <= 0.29
    assert (uniform.macs, uniform.params) == (ours.macs, ours.params)
    assert uniform.is_reachable and uniform.target == 0.29 and uniform.seconds is None


def test_unreachable_is_said():
    (row,) = estimate.forecast([config.load(TABLE3 / "gcp-macs-0.29.yaml", ["prune.target=0.001"])])
    assert not row.is_reachable and row.lowest == pytest.approx(0.0063, abs=0.0001)
    assert "NO: 0.64 % at least" in tables.forecast([row])
    targets = [config.load(TABLE3 / "gcp-macs-0.29.yaml", [f"prune.target={of}"]) for of in (0.0063, 0.0064)]
    assert [row.is_reachable for row in estimate.forecast(targets)] == [False, True]


def test_a_shared_dense_network_counts_once():
    rows = estimate.forecast(
        [
            config.load(REPO / "configs" / "demo" / f"{m}-macs-0.05.yaml", [f"seed={s}"])
            for s in (0, 1)
            for m in ("gcp", "uniform")
        ]
    )
    # 10,000 - 1,000 images, in 141 batches of 64: 14 epochs.
    assert [row.images_dense for row in rows] == [14 * 141 * 64, 0, 14 * 141 * 64, 0]


def test_time_is_images_over_speed():
    cfg = config.load(REPO / "configs" / "demo" / "gcp-macs-0.05.yaml")
    (row,) = estimate.forecast([cfg], lambda net, batch: 100.0)
    assert row.seconds == pytest.approx(row.images / 100)
    (faster,) = estimate.forecast([cfg], lambda net, batch: 1e9 / COSTS["macs"](net)(net.widths))
    net = zoo.from_gluoncv("resnet18_v1b", (3, 16, 16), 10)
    whole, small = 1e-9 * COSTS["macs"](net)(net.widths), 1e-9 * faster.macs
    assert faster.seconds == pytest.approx(
        faster.images_dense * whole + faster.images_prune * (whole + small) / 2 + faster.images_finetune * small
    )


def test_the_saved_network_of_table6_has_a_stand_in():
    dense, pruned = estimate.forecast(
        [
            config.load(REPO / "configs" / "caltech256" / "table6" / f"{name}.yaml")
            for name in ("dense", "gcp-macs-0.29")
        ]
    )
    assert not dense.stand_in and pruned.stand_in
    assert 0.28 < pruned.macs / dense.macs < 0.30
    # ResNet-50 with 256 outputs: its 2048 x 1000 weights and 1000 biases become 2048 x 256 and 256.
    assert dense.params == COSTS["params"](shape_only("resnet50_v1d"))(shape_only("resnet50_v1d").widths) - 2049 * 744
    # 60 of each class, a tenth held out: 13,824 images, in 216 batches of 64.
    assert dense.images_dense == 40 * 216 * 64
    assert "1.2541*" in tables.forecast([dense, pruned])


def test_a_source_that_was_pruned_by_latency_stands_in(tmp_path):
    source = REPO / "configs" / "fashion_mnist_latency" / "gcp-latency-0.25.yaml"
    start = "model: {name: 'results/none/gcp-latency-0.25-seed{seed}-*/final', new_head: true}"
    text = f"base: {source}\n{start}\nprune: {{target: 0.1}}\npaper: {{starts_from: {source}}}\n"
    (tmp_path / "again.yaml").write_text(text)
    first, again = estimate.forecast([config.load(source), config.load(tmp_path / "again.yaml")])
    assert again.stand_in and not first.stand_in
    assert again.is_reachable and again.target == 0.1 and again.macs < first.macs


def test_an_overlay_lies_over_the_source_too(tmp_path):
    text = "scale: smoke\nmodel: {name: cifar_resnet20_v1}\ndata: {name: digits}\ntrain: {epochs: 1}\n"
    (tmp_path / "source.yaml").write_text(f"{text}prune: {{method: uniform, target: 0.9, round_to: 1}}\n")
    start = f"model: {{name: {tmp_path}/none/final}}\npaper: {{starts_from: {tmp_path}/source.yaml}}\n"
    (tmp_path / "again.yaml").write_text(f"base: source.yaml\n{start}")
    (tmp_path / "over.yaml").write_text("prune: {target: 0.3}\n")
    whole, small = (
        estimate.start_network(config.load(tmp_path / "again.yaml", [], overlays), 10, overlays)[1]
        for overlays in ([], [tmp_path / "over.yaml"])
    )
    assert all(small[group] < whole[group] for group in whole)


def test_sizes_are_counted_where_there_are_images(tmp_path):
    cfg = config.load(TABLE3 / "gcp-macs-0.29.yaml", [f"data.root={tmp_path}", "data.validation=0.5"])
    assert estimate.sizes(cfg) == (1000, 1_281_167 - 640_584), "nothing there: the known numbers"
    for k in range(6):
        (tmp_path / "train" / f"n{k % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / f"n{k % 2}" / f"{k}.jpg").write_text("")
    assert estimate.sizes(cfg) == (2, 3)
    records = tmp_path / "records"
    records.mkdir()
    (records / "train.idx").write_text("".join(f"{k}\t{k}\n" for k in range(8)))
    (records / "classes.txt").write_text("a\nb\nc\n")
    assert estimate.sizes(
        config.load(TABLE3 / "gcp-macs-0.29.yaml", [f"data.root={records}", "data.validation=0.5"])
    ) == (3, 4)
    with pytest.raises(errors.UserError, match="set data.root"):
        estimate.sizes(config.load(TABLE3 / "gcp-macs-0.29.yaml", ["data.name=folder", "data.root=/no/such"]))


@pytest.mark.slow
def test_the_stopwatch_times_each_network_once():
    watch, net = estimate.Stopwatch(), shape_only("cifar_resnet20_v1", (3, 8, 8))
    net = estimate.resized(net, net.widths)
    assert watch(net, 16) == watch(net, 16) > 0
    assert "batch 16," in watch.measured and "1 networks" in watch.measured


@pytest.mark.slow
def test_large_images_are_timed_in_small_batches(monkeypatch):
    watch, net = estimate.Stopwatch(), shape_only("cifar_resnet20_v1", (3, 8, 8))
    monkeypatch.setitem(estimate.BENCHMARK_PIXELS, watch.device, 2 * 8 * 8 + 1)
    watch(estimate.resized(net, net.widths), 16)
    assert "batch 2," in watch.measured


@pytest.mark.parametrize("seconds, text", [(45, "45 s"), (720, "12 min"), (27000, "7.5 h"), (31 * 86400, "31 days")])
def test_durations(seconds, text):
    assert tables.duration(seconds) == text


def script(*args):
    return subprocess.run(
        [sys.executable, str(REPO / "scripts" / "reproduce.py"), *map(str, args)],
        cwd=REPO,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_dry_run_of_a_table_runs_nothing(tmp_path):
    done = script(TABLE3, "--dry-run", "--no-benchmark", "--seeds", "0,1", "--set", f"output={tmp_path}")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ") and "-macs-" in line]
    assert len(lines) == 20 and all("| yes " in line for line in lines)
    assert sum("chosen" in line for line in lines) == 8
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_benchmark_is_for_dry_runs():
    bad = script(TABLE3, "--no-benchmark")
    assert bad.returncode == 2 and "--dry-run" in bad.stderr
