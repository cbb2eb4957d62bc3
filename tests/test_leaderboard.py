"""Ranks, critical differences and paired intervals against published values and by hand; the files of a comparison."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from finished import finished, rows_of, saved
from networks import random_network
from scipy import stats

from gcp.cost.analytic import macs
from gcp.cost.layers import layers
from gcp.errors import UserError
from gcp.experiment import measure
from gcp.report import figures, leaderboard
from scripts import leaderboard as script

TOP1 = {  # method -> target -> seeds
    "uniform-l1": {0.1: (0.90, 0.91, 0.92), 0.02: (0.80, 0.82, 0.81)},
    "gcp": {0.1: (0.91, 0.93, 0.92), 0.02: (0.85, 0.86, 0.87)},
    "fpgm": {0.1: (0.89, 0.90, 0.91), 0.02: (0.79, 0.81, 0.80)},
}


def runs(top1=TOP1, model="resnet18_v1b"):
    made = {"uniform-l1": "uniform", "gcp": "gcp", "fpgm": "uniform"}
    return [
        finished(
            made.get(method, "uniform"),
            "macs",
            target,
            seed,
            value,
            name=f"{method}-macs-{target:g}",
            model=model,
            dense_top1=0.95,
            params_kept={"uniform-l1": 1.0, "gcp": 2.0}.get(method, 0.5) * target,
            pruned_top1=value - 0.3,
        )
        for method, by_target in top1.items()
        for target, values in by_target.items()
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize("k, q", [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_demsar_table_5(k, q):
    assert leaderboard.critical_difference(k, 14) == pytest.approx(q * np.sqrt(k * (k + 1) / (6 * 14)), abs=2e-3)


def test_ranks_are_means_over_the_blocks_that_all_methods_have():
    table = leaderboard.entries(runs())
    found = leaderboard.ranking(table)
    assert found.ranks.to_dict() == {"gcp": 1, "uniform-l1": 2, "fpgm": 3} and found.n_blocks == 2
    assert found.p == pytest.approx(stats.friedmanchisquare(*[[1, 1], [2, 2], [3, 3]]).pvalue)
    # A target that one method lacks: two methods in two blocks are as many cells as three in one, less than in two.
    part = table[(table.method != "fpgm") | (table.target == 0.1)]
    assert set(leaderboard.ranking(part).ranks.index) == {"gcp", "uniform-l1"}
    # One block has more cells than two together, but ranks are over several.
    more = table[table.target == 0.1]
    more = pd.concat([table, *(more.assign(method=f"other{k}") for k in range(9))])
    assert set(leaderboard.ranking(more).ranks.index) == {"gcp", "uniform-l1", "fpgm"}
    assert leaderboard.ranking(part[part.target == 0.1]) is None


def test_blocks_and_methods_are_those_of_most_cells():
    """Against all sets of blocks, at random; and of thirty blocks, which have too many sets to try them all."""
    rng = np.random.default_rng(0)

    def table(n_blocks, n_methods, share):
        cells = rng.random((n_blocks, n_methods)) < share
        rows = [
            {"method": f"m{j}", **dict.fromkeys(leaderboard.POINT, "x"), "target": i, "top1": rng.random()}
            for i, j in zip(*np.nonzero(cells))
        ]
        return cells, pd.DataFrame(rows)

    for _ in range(30):
        cells, some = table(5, 6, 0.7)
        best = max(
            (len(rows) ** 2 * n if n > 1 else 0)
            for k in range(2, 6)
            for rows in itertools.combinations(range(5), k)
            for n in [cells[list(rows)].all(axis=0).sum()]
        )
        found = leaderboard.ranking(some)
        assert best == (0 if found is None else found.n_blocks**2 * len(found.ranks))
    assert leaderboard.ranking(table(30, 12, 0.9)[1]).n_blocks >= 10


def test_a_cost_is_that_of_the_seeds_whose_accuracy_is_meant():
    table = leaderboard.entries(runs())
    table.loc[(table.method == "uniform-l1") & (table.seed > 0), "params_kept"] = np.nan  # as a latency can be
    found = leaderboard.at_equal(table, "params_kept", "uniform-l1")
    assert found.loc["uniform-l1", 0.1] == pytest.approx(TOP1["uniform-l1"][0.1][0])


def test_differences_are_paired_by_seed():
    found = leaderboard.differences(leaderboard.entries(runs()), "uniform-l1").set_index(["method", "target"])
    each = np.array([0.05, 0.04, 0.06])
    row = found.loc["gcp", 0.02]
    assert row["mean"] == pytest.approx(0.05) and row["n"] == 3
    interval = stats.t.interval(0.95, 2, each.mean(), stats.sem(each))
    assert row["half"] == pytest.approx((interval[1] - interval[0]) / 2)
    # Equal differences at all seeds: no width, although the accuracies themselves spread.
    assert found.loc["fpgm", 0.1]["mean"] == pytest.approx(-0.01) and found.loc["fpgm", 0.1]["half"] < 1e-12
    only_one = leaderboard.differences(leaderboard.entries(runs())[lambda t: t.seed == 0], "uniform-l1")
    assert only_one.half.isna().all()


def test_all_pairs_of_all_points_are_one_mean():
    """Of gcp six pairs of the first network, two of the second, which has another baseline and no fpgm."""
    table = leaderboard.entries(runs() + runs({"uniform-l1": {0.1: (0.7, 0.6)}, "gcp": {0.1: (0.6, 0.7)}}, "other"))
    found = leaderboard.overall(table, "uniform-l1").set_index("method")
    points = np.array([1, 2, 0, 5, 4, 6, -10, 10])
    assert found.loc["gcp", "mean"] == pytest.approx(0.01 * points.mean())
    half = stats.t.ppf(0.975, 7) * points.std(ddof=1) / 8**0.5
    assert found.loc["gcp", "half"] == pytest.approx(0.01 * half)
    assert tuple(found.loc["gcp", ["ahead", "n"]]) == (6, 8) and found.loc["fpgm", "n"] == 6
    assert list(found.index) == ["gcp", "fpgm"]


def test_at_equal_parameters_it_is_the_line_between_a_methods_own_points():
    found = leaderboard.at_equal(leaderboard.entries(runs()), "params_kept", "uniform-l1")
    assert found.loc["uniform-l1", 0.1] == pytest.approx(0.91)
    share = np.log(0.1 / 0.04) / np.log(0.2 / 0.04)  # of the way from gcp's small network to its large one
    assert found.loc["gcp", 0.1] == pytest.approx(0.86 + share * (0.92 - 0.86))
    assert np.isnan(found.loc["gcp", 0.02]) and np.isnan(found.loc["fpgm", 0.1]), "beyond the ends nothing is known"


def test_the_correlation_of_just_pruned_and_final():
    found = leaderboard.correlations(leaderboard.entries(runs()))
    assert list(found.rho) == [1, 1] and list(found.n) == [3, 3]


def factorial():
    """Uniform pruning and a one-shot criterion, each with two allocations and two seeds: 8 runs of known effects."""
    for (a, criterion), (b, allocation), k in itertools.product(
        zip((-1, 1), ("l1", "lamp")), zip((-1, 1), ("uniform", "global")), range(2)
    ):
        c = 2 * k - 1
        top1 = 0.5 + 0.03 * a + 0.02 * b + 0.01 * a * b + 0.02 * c + 0.01 * a * b * c
        is_uniform = (criterion, allocation) == ("l1", "uniform")
        options = {} if is_uniform else {"criterion": criterion, "allocation": allocation}
        name = "uniform-l1" if is_uniform else f"{allocation}-{criterion}"
        yield finished(
            "uniform" if is_uniform else "one_shot", "macs", 0.1, k, top1, name=f"{name}-macs-0.1", **options
        )


def test_what_the_criterion_and_the_allocation_explain():
    """Effects of orthogonal signs: the parts of the sum of squares are those of the squared coefficients."""
    table = leaderboard.entries(factorial())
    cells = leaderboard.crossed(table)
    assert cells.loc[("lamp", 1), "uniform"] == pytest.approx(0.5 + 0.03 - 0.02 - 0.01 + 0.02 - 0.01)
    found = leaderboard.shares(cells)
    squares = {"criterion": 9, "allocation": 4, "combination": 1, "seed": 4}
    for name, square in squares.items():
        part, p = found[name]
        assert part == pytest.approx(square / 19)
        # One degree of freedom, and the noise's three: the t-test of the same contrast.
        assert p == pytest.approx(2 * stats.t.sf((square / (1 / 3)) ** 0.5, 3))
    # A cut with a largest fraction per group is not decided by these two alone.
    floors = [finished("one_shot", "macs", 0.1, k, 0.9, name="floor-macs-0.1", max_cut=0.8) for k in range(2)]
    assert leaderboard.crossed(leaderboard.entries([*factorial(), *floors])).equals(cells)
    # A criterion that lacks an allocation, and a seed that one cell lacks, are left out.
    assert leaderboard.crossed(table[~((table.criterion == "lamp") & (table.allocation == "global"))]) is None
    part = leaderboard.crossed(table.drop(table.index[-1]))
    assert list(part.index) == [("l1", 0), ("lamp", 0)] and np.isnan(leaderboard.shares(part)["criterion"][1])
    assert np.isnan(leaderboard.shares(0 * cells)["criterion"]).all(), "networks that all guess have nothing to explain"


@pytest.mark.slow
def test_the_table_of_criteria_by_allocations(tmp_path):
    leaderboard.write(factorial(), tmp_path, "uniform-l1")
    text = (tmp_path / "resnet18_v1b_grid.md").read_text()
    assert [row["Criterion"] for row in rows_of(text)] == ["lamp", "l1", "mean of complete rows"]
    assert [row["global"] for row in rows_of(text)] == ["56.00 ± 4.24", "48.00 ± 1.41", "52.00"]
    assert "the criterion 47 %" in text


@pytest.mark.slow
def test_a_grid_does_not_outweigh_the_points_that_methods_have_in_common(tmp_path):
    """Three methods at four points, and at two of them a grid of further methods, which has a table of its own."""
    top1 = {name: {0.1: (0.9 - 0.1 * i,), 0.02: (0.8 - 0.1 * i,)} for i, name in enumerate(TOP1)}
    some = runs(top1) + runs(top1, "other")
    for target in (0.1, 0.02):
        for i, (criterion, allocation) in enumerate(itertools.product(("l2", "lamp", "taylor"), ("global", "exact"))):
            name = f"{allocation}-{criterion}-macs-{target:g}"
            options = {"criterion": criterion, "allocation": allocation}
            some.append(finished("one_shot", "macs", target, 0, 0.5 + i / 100, name=name, **options))
    found = leaderboard.ranking(leaderboard.entries(some))
    assert found.n_blocks == 4 and set(found.ranks.index) == set(TOP1)
    leaderboard.write(some, tmp_path, "uniform-l1")
    rows = rows_of((tmp_path / "resnet18_v1b_accuracy.md").read_text())
    assert {row["Method"] for row in rows} == {"unpruned", *TOP1}
    assert len(rows_of((tmp_path / "resnet18_v1b_grid.md").read_text())) == 10
    # What is trained by another recipe has no part in the grid, and is shown.
    taught = finished("one_shot", "macs", 0.1, 0, 0.1, name="taught-macs-0.1", criterion="l2", allocation="exact")
    recipe = {**taught.record.config["finetune"], "teacher": "dense"}
    config = {**taught.record.config, "finetune": recipe}
    taught = taught._replace(record=taught.record.model_copy(update={"config": config, "fingerprint": 12 * "f"}))
    text = (tmp_path / "resnet18_v1b_grid.md").read_text()
    leaderboard.write([*some, taught], tmp_path, "uniform-l1")
    assert (tmp_path / "resnet18_v1b_grid.md").read_text() == text
    rows = rows_of((tmp_path / "resnet18_v1b_accuracy.md").read_text())
    assert {row["Method"] for row in rows} == {"unpruned", *TOP1, "taught"}
    # Where there is no grid, what has a criterion is shown, whatever it is called elsewhere; so is a network that the
    # baseline lacks.
    alone = [finished("one_shot", "macs", 0.5, 0, 0.7, name="exact-l2-macs-0.5", criterion="l2", allocation="exact")]
    alone += runs({"gcp": {0.1: (0.9,)}}, "third")
    leaderboard.write([*some, *alone], tmp_path, "uniform-l1")
    rows = rows_of((tmp_path / "resnet18_v1b_accuracy.md").read_text())
    assert {row["Method"]: row["50 %"] for row in rows}["exact-l2"].startswith("70.00")
    assert (tmp_path / "third_accuracy.md").exists() and not (tmp_path / "third_difference.md").exists()


def test_two_runs_of_one_name_are_refused_and_so_is_a_baseline_that_is_not_there():
    twice = runs() + [finished("uniform", "macs", 0.1, 0, 0.5, name="uniform-l1-macs-0.1", train={"epochs": 3})]
    with pytest.raises(UserError, match="two runs use uniform-l1 on resnet18_v1b at 0.1 of the macs, seed 0"):
        leaderboard.entries(twice)
    with pytest.raises(UserError, match="no run is called l1; choose one of fpgm, gcp, uniform-l1"):
        leaderboard.differences(leaderboard.entries(runs()), "l1")


@pytest.mark.slow
def test_targets_of_two_costs_are_never_in_one_table(tmp_path):
    """The same fraction of the parameters is another target."""
    other = [finished("gcp", "params", 0.1, seed, 0.5, name="gcp-params-0.1") for seed in range(3)]
    other += [finished("uniform", "params", 0.1, seed, 0.4, name="uniform-l1-params-0.1") for seed in range(3)]
    leaderboard.write(runs() + other, tmp_path, "uniform-l1")
    found = {name: (tmp_path / f"resnet18_v1b_{name}_accuracy.md").read_text() for name in ("macs", "params")}
    assert "of the MACs" in found["macs"] and "of the parameters" in found["params"]
    cells = {name: {row["Method"]: row["10 %"] for row in rows_of(text)} for name, text in found.items()}
    assert cells["macs"]["gcp"] == "92.00 ± 1.00" and cells["params"]["gcp"] == "50.00 ± 0.00"


@pytest.mark.slow
def test_how_many_networks_take_the_latency_that_they_should(tmp_path):
    """As measured in the latency model's setup, not at the batch of the throughput: there, all take half."""
    kept = {0.4: (0.4, 0.408, 0.413, 0.45), 0.6: (0.5, 0.59)}
    some = [
        finished("uniform", "latency", target, seed, latency=(value, "CPU"), name=f"uniform-l1-latency-{target:g}")
        for target, values in kept.items()
        for seed, value in enumerate(values)
    ]
    for run, rounds in zip(some, ([0.396, 0.4, 0.404], [0.4, 0.416], [0.413])):  # standard errors of 0.6 and 2 %
        budget = run.speeds.budget.model_copy(update={"rounds": rounds})
        some[some.index(run)] = run._replace(speeds=run.speeds.model_copy(update={"budget": budget}))
    leaderboard.write(some + runs(), tmp_path, "uniform-l1")
    text = (tmp_path / "resnet18_v1b_latency_cost.md").read_text()
    in_rounds = " (standard errors, of 2 timed in rounds: 0.6 to 2.0 %)"
    assert f"Of 4 networks with a latency target of 40 %, 2 are within 2 %, 3 are within 5 % of it{in_rounds}." in text
    assert "Of 2 networks with a latency target of 60 %, 1 are within 2 %, 1 are within 5 % of it." in text
    assert [row["Latency %"] for row in rows_of(text)] == ["54.5", "41.8"]
    assert "latency target" not in (tmp_path / "resnet18_v1b_macs_cost.md").read_text()


def test_bars_join_what_cannot_be_told_apart():
    ranks = np.array([1.0, 1.5, 3.0, 3.4, 6.0])
    assert figures._cliques(ranks, 1.6) == [(0, 1), (1, 2), (2, 3)]
    assert figures._cliques(ranks, 2.0) == [(0, 2), (1, 3)]
    assert figures._cliques(ranks, 0.3) == []


def test_a_method_that_has_no_seed_in_common_with_the_baseline_yet_is_not_drawn():
    table = leaderboard.entries(runs())
    table.loc[table.method == "gcp", "seed"] += 7
    (ax,) = figures.accuracy_bars(table, ["gcp", "uniform-l1", "fpgm"], "uniform-l1").axes
    assert {line.get_label() for line in ax.lines if line.get_label()[0] != "_"} == {"fpgm", "uniform-l1"}


def test_another_result_of_a_run_is_told_and_a_copy_is_not(tmp_path, capsys):
    run = runs()[0]
    final = run.record.stages.final.model_copy(update={"top1": 0.5})
    other = run.record.model_copy(update={"stages": run.record.stages.model_copy(update={"final": final})})
    with pytest.raises(UserError, match="no run is called absent"):
        script.run([str(saved(tmp_path / "copies", [run, run])), "--baseline", "absent"])
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="no run is called absent"):
        script.run([str(saved(tmp_path / "two", [run, run._replace(record=other)])), "--baseline", "absent"])
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.slow
def test_the_files_of_a_comparison(tmp_path, capsys):
    # Of the second network only one target, and one method of its own.
    other = {
        "uniform-l1": {0.1: (0.7, 0.6)},
        "gcp": {0.1: (0.8, 0.7)},
        "fpgm": {0.1: (0.6, 0.6)},
        "taylor": {0.1: (0.9,)},
    }
    both = {"a": runs(), "b": runs(other, "cifar_resnet20_v1")}
    folders = [str(saved(tmp_path / name, some)) for name, some in both.items()]
    with pytest.raises(UserError, match="--output"):
        script.run(folders)
    script.run([*folders, "--output", str(tmp_path / "out")])
    rows = rows_of((tmp_path / "out" / "resnet18_v1b_accuracy.md").read_text())
    assert [row["Method"] for row in rows] == ["unpruned", "gcp", "uniform-l1", "fpgm"]
    seeds = {"Seeds": "3, 3"}
    assert rows[1] == {"Method": "gcp", "Mean rank": "1.00", "10 %": "92.00 ± 1.00", "2 %": "86.00 ± 1.00", **seeds}
    assert rows[0]["10 %"] == "95.00 ± 0.00"
    rows = rows_of((tmp_path / "out" / "resnet18_v1b_difference.md").read_text())
    assert rows[0]["Method"] == "gcp" and rows[0]["Difference at 2 %"] == "+5.00 ± 2.48"
    rows = rows_of((tmp_path / "out" / "cifar_resnet20_v1_accuracy.md").read_text())
    assert [row["Method"] for row in rows][-1] == "taylor" and rows[-1]["Mean rank"] == "-"
    rows = rows_of((tmp_path / "out" / "resnet18_v1b_cost.md").read_text())
    assert rows[0]["Images of pruning"] == "regularise 30,000, recover 10,000" and rows[0]["Target %"] == "10"
    for name in ("ranks.png", "resnet18_v1b_accuracy.png", "resnet18_v1b_params.csv", "correlation.md"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert "gcp" in capsys.readouterr().out


def test_where_time_goes(tmp_path):
    """By a device on which everything takes as long as its multiply-accumulates, but images of 8 px twice as long."""
    net = random_network("cifar_resnet20_v1", (3, 32, 32))
    model = SimpleNamespace(network=net.name, input=net.input_shape, classes=net.n_classes)

    def layer(of, n_in, n_out):
        return of.kernel_size * of.positions * n_in * n_out * (2 if of.positions == 64 else 1)

    model.layer = layer
    halves = {group: n // 2 for group, n in net.widths.items()}
    run = finished("gcp", "macs", 0.1, 0, 0.9, name="gcp-macs-0.1", model=net.name)
    run.record.widths.final.clear()
    run.record.widths.final.update(halves)
    run.record.config["data"]["input"] = [3, 32, 32]
    base = finished("uniform", "macs", 0.1, 0, 0.8, name="uniform-l1-macs-0.1", model=net.name)
    found = measure.predicted([run, base], model)
    [shares] = found.values()
    assert list(shares) == ["32x32", "16x16", "8x8", "1x1"]
    kept = macs(net)(halves) / macs(net)(net.widths)
    assert sum(share.macs for share in shares.values()) == pytest.approx(kept)
    in_8 = sum(own.kernel_size * 64 * np.prod(own.widths(net.widths)) for own in layers(net) if own.positions == 64)
    whole = 1 + in_8 / macs(net)(net.widths)
    for place, share in shares.items():
        assert share.latency == pytest.approx(share.macs * (2 if place == "8x8" else 1) / whole, rel=1e-6)
    leaderboard.write([run, base], tmp_path, "uniform-l1", found)
    [row] = rows_of((tmp_path / "cifar_resnet20_v1_places.md").read_text())
    assert row["Method"] == "gcp" and row["8x8: MACs %"] == f"{100 * shares['8x8'].macs:.1f}"
    model.input = (3, 64, 64)
    with pytest.raises(UserError) as refused:
        measure.predicted([run, base], model)
    assert refused.value.key == "latency.network"


def test_the_number_of_images_is_one_that_most_methods_saw():
    """Half of them saw about as many: the median would be a number that none saw."""
    seen = {"a": 100_000, "b": 100_000, "c": 251_000, "d": 394_000, "e": 391_000, "f": 397_000}
    rows = [{"target": 0.5, "method": name, "images_total": n} for name, n in seen.items()]
    text = leaderboard.images_seen(pd.DataFrame(rows))
    assert text == "Training images after the dense network: 394,000 at 50 %; except a 100,000, b 100,000, c 251,000."


def test_the_number_of_images_of_an_exception_is_one_that_is_an_exception():
    """At 10 % the method saw as many images as all others."""
    seen = {"a": {0.1: 1000, 0.5: 3000}, "b": {0.1: 1000, 0.5: 3000}, "c": {0.1: 1000, 0.5: 9000}}
    rows = [{"target": at, "method": name, "images_total": n} for name, of in seen.items() for at, n in of.items()]
    assert leaderboard.images_seen(pd.DataFrame(rows)).endswith("3,000 at 50 %, 1,000 at 10 %; except c 9,000.")


def test_the_dense_network_is_that_of_each_target():
    """Of a target that was run later, on another processor, rounding gave other dense networks."""
    dense = {0.1: 0.95, 0.05: 0.93}
    made = [
        finished("uniform", "macs", target, seed, 0.9, name=f"u-macs-{target:g}", dense_top1=top1 + seed / 100)
        for target, top1 in dense.items()
        for seed in range(3)
    ]
    _, columns, _, _ = leaderboard._accuracies(leaderboard.entries(made), ["u"], None)
    assert columns["Method"][0] == "unpruned"
    assert [columns[title][0] for title in ("10 %", "5 %")] == pytest.approx([96, 94])
    assert columns["5 % sd"][0] == pytest.approx(1)
