"""Pruning for a latency, whole: config, model, clock, record. The model's samples are made up, the clock is real."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from finished import rows_of
from networks import random_network
from scipy import stats

from gcp.backend import clock
from gcp.cost import latency, sampling
from gcp.cost.analytic import macs
from gcp.cost.measured import CONFIRMED
from gcp.errors import UserError
from gcp.experiment import config, measure, plan
from gcp.experiment import record as records
from gcp.experiment import run as experiment_run
from gcp.report import frame, tables


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    """What the clock says does not matter here, so it need not be certain."""
    for name, value in (("MEASURED_S", 0.05), ("FEWEST", 2), ("MOST", 2)):
        monkeypatch.setattr(plan, name, value)


TINY = """
scale: smoke
threads: {threads}
model: {{name: cifar_resnet20_v1}}
data: {{name: digits, input: [3, 8, 8], batch: 16, n_train: 300}}
train: {{epochs: 2, lr: 0.02}}
prune: {{method: gcp, latency_model: {model}, gcp: {{iterations: 2, lr: 0.001, recover_lr: 0.001}}}}
finetune: {{epochs: 1, lr: 0.05}}
throughput: {{batch: 8, repeats: 2}}
"""


@pytest.fixture(autouse=True)
def _a_quick_clock(monkeypatch):
    monkeypatch.setattr(plan, "MEASURED_S", 0.05)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model in which a multiply-accumulate takes a nanosecond, multiples of 4 are what the device likes."""
    path = tmp_path_factory.mktemp("model") / "model.json"
    net = random_network("cifar_resnet20_v1", (3, 8, 8), 10)

    reference = macs(net)(net.widths) * 1e-9

    def timed(other):
        slow = 1.0 if all(w % 4 == 0 for w in other.widths.values()) else 2.0
        return {
            "latency_s": slow * macs(other)(other.widths) * 1e-9,
            "spread": 0.0,
            "n": 1,
            "noisy": False,
            "attempts": 1,
        }, reference

    setup = clock.Setup(batch=8).as_json()
    samples = sampling.sample(net, path.with_suffix(".jsonl"), setup, clock.hardware(), timed, 30)
    assert samples.header.granularity == 4
    latency.save(latency.fit(net, samples), path)
    return path


@pytest.fixture()
def configured(model, tmp_path):
    def build(*overrides, **changes):
        path = tmp_path / "run.yaml"
        path.write_text(
            TINY.format(threads=changes.get("threads", clock.Setup().threads), model=changes.get("model", model))
        )
        return config.load(path, [f"output={tmp_path}/results", *overrides])

    return build


@pytest.mark.slow
def test_gcp_latency_is_cut_by_the_clock(configured, model):
    cfg = configured("prune.objective=latency", "prune.target=0.7", "prune.round_to=auto")
    record = experiment_run.run(cfg)
    assert record.objective == "latency" and record.round_to == 4
    assert all(w % 4 == 0 for w in record.widths.final.values())
    for row in record.history:
        first, *corrected = row["timings"]  # the made-up model knows nothing of this machine
        assert first["aim"] == pytest.approx(0.7 ** (row["iteration"] / 2)) and len(corrected) <= 6
        assert max(Counter(each["aim"] for each in row["timings"]).values()) <= CONFIRMED
        assert all(each["measured"] > 0 and each["error"] >= 0 for each in row["timings"])
    predicted = latency.load(model).cost(random_network("cifar_resnet20_v1", (3, 8, 8), 10))
    assert record.cost_predicted == pytest.approx(predicted(record.widths.final) / predicted(record.widths.dense))
    before = (records.run_path(cfg) / records.RECORD).read_bytes()
    done = measure.measure_speed(cfg)
    assert done.speeds.latency_kept > 0 and done.speeds.budget.setup["batch"] == 8
    assert records.read_speeds(done.path) == done.speeds
    assert (records.run_path(cfg) / records.RECORD).read_bytes() == before  # nothing is written twice


@pytest.mark.slow
def test_a_run_that_goes_on_takes_the_cut_that_the_clock_decided(configured, monkeypatch):
    cfg = configured("prune.objective=latency", "prune.target=0.6", "prune.round_to=4")
    first = experiment_run.run(cfg)
    (records.run_path(cfg) / records.RECORD).unlink()
    for asked in ("measure", "against_reference"):
        monkeypatch.setattr(clock, asked, lambda *a, **k: pytest.fail("the clock was asked again"))
    again = experiment_run.run(cfg)
    assert again.widths == first.widths and again.stages.final.loss == first.stages.final.loss


@pytest.mark.slow
def test_other_objectives_can_be_cut_to_a_latency(configured):
    for overrides in (
        ["prune.objective=macs", "prune.budget=latency"],
        ["prune.method=uniform", "prune.objective=latency"],
    ):
        record = experiment_run.run(configured(*overrides, "prune.target=0.8", "prune.round_to=4"))
        assert record.cost_predicted < 1


@pytest.mark.parametrize(
    "ratios, busy, n, noisy",
    [
        ([0.5, 0.501, 0.499], 0, 3, False),  # known to a thousandth after the fewest
        ([0.45, 0.55, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 0, 12, True),  # to 1.2 % after the most
        ([0.49, 0.51, 0.49, 0.51, 0.49, 0.51, 0.49], 0, 5, False),  # 0.011 / sqrt(5) is below a hundredth of 0.5
        ([0.5, 0.501, 0.499], 2, 3, True),  # other processes had the cores in two of three
    ],
)
def test_a_ratio_of_latencies_is_measured_until_it_is_known(ratios, busy, n, noisy, monkeypatch):
    for name, value in (("FEWEST", 3), ("MOST", 12), ("PRECISION", 0.01)):
        monkeypatch.setattr(plan, name, value)
    rows = iter([({"latency_s": 2.0 * ratio, "noisy": k < busy}, 2.0) for k, ratio in enumerate(ratios)])
    monkeypatch.setattr(clock, "against_reference", lambda *args, **options: lambda net: next(rows))
    found = plan.relative_latency(None, None, None)
    assert found.kept == pytest.approx(np.mean(ratios[:n])) and (found.whole_s, found.noisy) == (2.0, noisy)
    assert found.error == pytest.approx(stats.sem(ratios[:n]))
    assert len(list(rows)) == len(ratios) - n


@pytest.mark.parametrize("asked, n", [(0.4, 3), (0.6, 3), (0.46, 4), (0.48, 5), (0.5, 5)])
def test_a_candidate_is_measured_only_until_it_is_clear_that_it_misses_its_limit(asked, n, monkeypatch):
    """Means of 0.497 and 0.5 of 3 and 4: a t-test with 2 and 3 degrees of freedom excludes 0.046 and 0.026 more."""
    ratios = [0.49, 0.51] * 6
    for name, value in (("FEWEST", 3), ("MOST", 12), ("PRECISION", 0.01), ("SURE", 0.99)):
        monkeypatch.setattr(plan, name, value)
    rows = iter([({"latency_s": 2.0 * ratio, "noisy": False}, 2.0) for ratio in ratios])
    monkeypatch.setattr(clock, "against_reference", lambda *args, **options: lambda net: next(rows))
    assert plan.relative_latency(None, None, None, asked).kept == pytest.approx(np.mean(ratios[:n]))
    assert len(list(rows)) == len(ratios) - n


@pytest.mark.slow
def test_noise_goes_from_the_clock_through_the_file_to_the_tables_marks(configured, tmp_path, monkeypatch):
    """Of the throughput and of the latency that the budget is about; the processor's load is made up."""
    monkeypatch.setattr(clock, "MAX_SPREAD", 1e9)
    monkeypatch.setattr(plan, "PRECISION", 1e9)
    for name in ("MIN_TIME_S", "WARM_UP_S"):
        monkeypatch.setattr(clock, name, 0.0)

    def load(ours):
        readings = itertools.cycle([(0.0, 0.0, 0.0), (10.0, 10.0 * ours, 10.0 * ours)])
        monkeypatch.setattr(clock, "_processor_times", lambda: next(readings))

    cfg = configured("prune={method: uniform, objective: latency, target: 0.9}", "train.epochs=0", "finetune.epochs=0")
    with monkeypatch.context() as patch:
        patch.setattr(clock, "measure", lambda *_, **__: [{"latency_s": 0.9}, {"latency_s": 1.0}])
        experiment_run.run(cfg)
    seen = {}
    for busy in (False, True):
        load(0.6 if busy else clock.Setup().threads)  # of ten seconds we had six
        speeds = measure.measure_speed(cfg).speeds
        assert speeds.throughput.dense.noisy is speeds.throughput.final.noisy is speeds.budget.noisy is busy
        saved = json.loads((records.run_path(cfg) / records.SPEED).read_text())
        assert saved["throughput"]["final"]["noisy"] is saved["budget"]["noisy"] is busy
        tables.write(frame.frame(records.load_records(tmp_path / "results")), tmp_path)
        rows = rows_of((tmp_path / "table.md").read_text())
        seen[busy] = {key: {row[key][-1:] == "*" for row in rows} for key in ("Images/s", "Throughput ratio")}
        (records.run_path(cfg) / records.SPEED).unlink()
    assert seen == {busy: {"Images/s": {busy}, "Throughput ratio": {busy}} for busy in (False, True)}


@pytest.mark.slow
def test_runs_are_timed_in_rounds_and_an_interrupted_round_goes_on(configured, tmp_path, monkeypatch):
    """The clock is interrupted in the second round; a run that was timed by itself is left as it is."""
    how = ("prune={method: uniform, objective: latency, target: 0.9}", "train.epochs=0", "finetune.epochs=0")
    cfgs = [configured(*how, f"seed={seed}") for seed in range(3)]
    timed = {"latency_s": 1.0, "spread": 0.0, "n": 1, "noisy": False, "attempts": 1, "images_per_second": 8.0}
    monkeypatch.setattr(clock, "measure", lambda *_, **__: [timed, timed])
    for cfg in cfgs:
        experiment_run.run(cfg)
    alone = plan.RelativeLatency(0.5, 0.0, 1.0, False)
    monkeypatch.setattr(measure, "relative_latency", lambda *_: alone)
    measure.measure_speed(cfgs[2])  # by itself, when it was finished
    n_asked, shown = itertools.count(), []

    def asked(*_):
        k = next(n_asked)
        if k == 3:
            raise KeyboardInterrupt
        return plan.RelativeLatency([0.50, 0.60, 0.51, None, 0.66, 0.505, 0.60][k], 0.0, 1.0, False)

    monkeypatch.setattr(measure, "relative_latency", asked)
    with pytest.raises(KeyboardInterrupt):
        measure.time_records(tmp_path / "results", lambda *_: None)
    measure.time_records(tmp_path / "results", lambda *done: shown.append(done))
    found = [records.read_speeds(records.run_path(cfg)).budget for cfg in cfgs]
    assert [budget.rounds for budget in found] == [[0.50, 0.51, 0.505], [0.60, 0.66, 0.60], None]
    assert [budget.kept for budget in found] == pytest.approx([0.505, 0.62, 0.5])
    assert [budget.noisy for budget in found] == [False, True, False]  # standard errors of 0.0029 and 0.02
    assert shown[-1] == (6, 6) and next(n_asked) == 7
    measure.time_records(tmp_path / "results", lambda *_: pytest.fail("all has been timed"))


@pytest.mark.slow
def test_a_run_that_cannot_be_timed_does_not_keep_others_from_it(configured, tmp_path, monkeypatch, capsys):
    how = ("prune={method: uniform, target: 0.9}", "train.epochs=0", "finetune.epochs=0")
    runs = [configured(*how, f"seed={seed}") for seed in range(2)]
    for cfg in runs:
        experiment_run.run(cfg)
    path = records.run_path(runs[0]) / "config.yaml"
    path.write_text(path.read_text() + "train: no section\n")
    measure.time_records(tmp_path / "results", lambda *_: None)
    assert f"{records.run_path(runs[0])} was not timed" in capsys.readouterr().err
    assert records.read_speeds(records.run_path(runs[1])) is not None


@pytest.mark.slow
def test_targets_in_milliseconds_and_images_per_second_are_fractions_of_the_model(configured, model):
    from gcp.data.datasets import load

    reference = latency.load(model).reference_s
    for key, value in (("target_ms", 500 * reference), ("target_images_per_second", 16 / reference)):
        cfg = configured("prune.objective=latency", f"prune.{key}={value}", "prune.round_to=4")
        _, budget = experiment_run.plan(cfg, load(cfg.data))
        assert budget.target == pytest.approx(0.5)
    cfg = configured("prune.objective=latency", f"prune.target_ms={2000 * reference}")
    with pytest.raises(UserError, match="that the whole network takes; set a lower latency"):
        experiment_run.plan(cfg, load(cfg.data))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["prune.objective=latency", "prune.target=0.001", "prune.round_to=4"],
            "cannot be reached.*a latency of .* ms",
        ),
        (["prune.objective=latency", "prune.target=0.5", "threads=7"], "threads . and threads 7"),
        (["prune.objective=latency", "prune.target=0.5", "data.input=[3, 16, 16]"], "input 3x8x8 and input 3x16x16"),
        (
            ["prune.objective=latency", "prune.target=0.5", "model.name=resnet18_v1b"],
            "network 'cifar_resnet20_v1' and network 'resnet18_v1b'",
        ),
        (
            ["prune.objective=latency", "prune.target=0.5", "prune.latency_model=absent.json"],
            "prune.latency_model: 'absent.json' cannot be read",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused(configured, overrides, message):
    with pytest.raises(UserError, match=message):
        experiment_run.run(configured(*overrides))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, message",
    [
        (["prune.objective=latency", "prune.target=0.5", "prune.latency_model=null"], "latency needs a latency model"),
        (
            ["prune.target=0.5", "prune.latency_model=null", "prune.round_to=auto"],
            "round_to: auto needs a latency model",
        ),
        (["prune.target_ms=3"], "target_ms is for latency, but the target applies to macs"),
        (["prune={objective: latency, target_ms: 3, target: 0.5}"], "are alternatives"),
        (["prune.objective=latency"], "needs a target"),
    ],
)
def test_contradictions_are_one_line(configured, overrides, message):
    with pytest.raises(UserError, match=message):
        configured(*overrides)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["cpu", "cpu_model"])
def test_another_processor_is_refused(configured, model, tmp_path, key):
    """By its name, and by its model where two processors have one name."""
    raw = json.loads(model.read_text())
    raw["hardware"][key] = "another one"
    (tmp_path / "other.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="processor 'another one' and processor"):
        experiment_run.run(configured("prune.objective=latency", "prune.target=0.5", model=tmp_path / "other.json"))
