"""The report room on hand-made records: numbers that can be checked by hand, missing cells, labels, files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import old_records
import pandas as pd
import pytest

from gcp.errors import UserError
from gcp.report import figures, report

ROOT = Path(__file__).parent.parent


def stage(top1, images_per_second, epochs=0, images=0):
    speed = (
        {
            "images_per_second": images_per_second,
            "latency_s": 64 / images_per_second,
            "batch": 64,
            "dtype": "float32",
            "device": "cpu",
            "threads": 2,
        }
        if images_per_second
        else None
    )
    return {
        "top1": top1,
        "top5": 0.99,
        "loss": 0.5,
        "n_eval": 10000,
        "macs": 1000,
        "params": 100,
        "epochs": epochs,
        "images": images,
        "seconds": 1.0,
        "throughput": speed,
    }


def record(
    method,
    objective,
    target,
    seed,
    top1,
    *,
    dense_top1=0.92,
    images_per_second=2000.0,
    macs_kept=None,
    scale="reduced",
    finetune=None,
    **prune,
):
    """A record of a three-group network; further keyword arguments go into its config's prune section."""
    config = {
        "scale": scale,
        "seed": seed,
        "model": {"name": "resnet18_v1b"},
        "data": {"name": "fashion_mnist"},
        "train": {"epochs": 20},
        "finetune": {"epochs": 10, "extra_epochs": 0, **(finetune or {})},
        "prune": {
            "method": method,
            "objective": objective,
            "target": target,
            "score": "relative",
            "round_to": 1,
            "criterion": "l1",
            "iterations": 4,
            **prune,
        },
    }
    before = 40000 if method == "gcp" else 0
    return {
        "fingerprint": json.dumps(config),
        "name": "run",
        "scale": scale,
        "seed": seed,
        "config": config,
        "git_commit": None,
        "versions": {},
        "device": {"name": "cpu", "cpu": "Test CPU", "threads": 2},
        "date": "",
        "model": "resnet18_v1b",
        "data": "fashion_mnist",
        "method": method,
        "objective": objective,
        "target": target,
        "stages": {
            "dense": stage(dense_top1, 1000.0, 20, 600000),
            "pruned": stage(0.5, images_per_second),
            "final": stage(top1, images_per_second, 10, 300000),
        },
        "macs_kept": target if macs_kept is None else macs_kept,
        "params_kept": 0.25,
        "widths": {
            "dense": {"conv0": 64, "stage2": 128, "stage1": 64},
            "final": {"conv0": 8, "stage2": 64, "stage1": 16},
        },
        "iterations": [],
        "images_before_finetune": before,
        "images_total": before + 300000,
        "seconds": 10.0,
    }


def saved(folder: Path, records: list[dict]) -> Path:
    for i, each in enumerate(records):
        old_records.write(folder / f"run{i:02d}", each)
    return folder


def three_seeds() -> list[dict]:
    # GCP 0.90, 0.91, 0.92 -> 91.00 +- 1.00; dense 0.92, 0.92, 0.95 -> 93.00 +- 1.73;
    # drops 2, 1, 3 -> 2.00 +- 1.00; uniform one point, one point and two points below GCP -> +1.33 +- 0.58.
    runs = []
    for seed, (dense, ours, other) in enumerate([(0.92, 0.90, 0.89), (0.92, 0.91, 0.90), (0.95, 0.92, 0.90)]):
        runs.append(
            record("uniform", "macs", 0.05, seed, other, dense_top1=dense, images_per_second=2000.0 + 500 * seed)
        )
        runs.append(record("gcp", "macs", 0.05, seed, ours, dense_top1=dense, images_per_second=3000.0 + 1000 * seed))
    return runs


def cells(markdown: Path) -> list[dict[str, str]]:
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in markdown.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    return [dict(zip(lines[0], line)) for line in lines[2:]]


def test_table_by_hand(tmp_path):
    report.write(saved(tmp_path, three_seeds()))
    dense, ours, other = cells(tmp_path / "report" / "table.md")
    assert dense == {
        "Method": "Dense",
        "Objective": "-",
        "Target %": "-",
        "MACs kept %": "100.00",
        "Params kept %": "100.00",
        "Top-1 %": "93.00 ± 1.73",
        "Drop (points)": "-",
        "Top-5 %": "99.00",
        "Images/s": "1,000",
        "Throughput ratio": "1.00",
        "Top-1 % before fine-tuning": "-",
        "Images before fine-tuning": "-",
        "Fine-tune epochs": "-",
        "Images total": "600,000",
        "Seeds": "3",
        "Scale": "reduced",
    }
    assert ours == {
        "Method": "GCP-f",
        "Objective": "MACs",
        "Target %": "5",
        "MACs kept %": "5.00",
        "Params kept %": "25.00",
        "Top-1 %": "91.00 ± 1.00",
        "Drop (points)": "2.00 ± 1.00",
        "Top-5 %": "99.00",
        "Images/s": "4,000",
        "Throughput ratio": "4.00",
        "Top-1 % before fine-tuning": "50.00",
        "Images before fine-tuning": "40,000",
        "Fine-tune epochs": "10",
        "Images total": "340,000",
        "Seeds": "3",
        "Scale": "reduced",
    }
    assert other["Method"] == "Uniform (L1)" and other["Images/s"] == "2,500" and other["Top-1 %"] == "89.67 ± 0.58"


def test_comparison_by_hand(tmp_path):
    report.write(saved(tmp_path, three_seeds()))
    [row] = cells(tmp_path / "report" / "comparison.md")
    assert (row["Method"], row["Other"], row["Seeds"], row["Equal cost"]) == ("GCP-f", "Uniform (L1)", "3", "yes")
    assert row["Top-1 difference (points)"] == "+1.33 ± 0.58"
    assert (row["Cost kept %"], row["Cost difference %"]) == ("5.00", "0.00")
    assert (row["Images total"], row["Images total, other"]) == ("340,000", "300,000")


@pytest.mark.parametrize("achieved, equal", [((0.0509, 0.0491), "yes"), ((0.0512, 0.0488), "NO")])
def test_equal_cost_is_held_by_every_seed(tmp_path, achieved, equal):
    # Over two seeds the mean difference is zero in both cases; each seed alone decides.
    runs = [record("uniform", "macs", 0.05, seed, 0.9, macs_kept=0.05) for seed in range(2)]
    runs += [record("gcp", "macs", 0.05, seed, 0.9, macs_kept=kept) for seed, kept in enumerate(achieved)]
    report.write(saved(tmp_path, runs))
    [row] = cells(tmp_path / "report" / "comparison.md")
    assert row["Equal cost"] == equal and row["Cost difference %"] == "0.00"


def test_comparison_uses_shared_seeds_and_same_targets_only():
    runs = report.run_frame(
        [
            record("gcp", "macs", 0.05, 0, 0.90),
            record("gcp", "macs", 0.05, 1, 0.95),
            record("uniform", "macs", 0.05, 1, 0.93),
            record("uniform", "macs", 0.2, 0, 0.91),
            record("uniform", "params", 0.05, 0, 0.91),
        ]
    )
    table = report.comparison(runs)
    assert len(table) == 1 and table["Seeds"][0] == 1
    assert table["Top-1 difference (points)"][0] == pytest.approx(2.0)
    assert pd.isna(table["Top-1 difference (points) sd"][0])


def test_csv_holds_numbers_and_latex_is_escaped(tmp_path):
    report.write(saved(tmp_path, three_seeds()))
    table = pd.read_csv(tmp_path / "report" / "table.csv", na_values="-")
    assert table["Top-1 %"].tolist() == pytest.approx([93.0, 91.0, 89.6667], abs=1e-3)
    assert table["Top-1 % sd"].tolist() == pytest.approx([1.73205, 1.0, 0.57735], abs=1e-4)
    assert table["Data"].tolist() == ["fashion_mnist"] * 3
    latex = (tmp_path / "report" / "table.tex").read_text(encoding="utf-8")
    assert r"91.00 $\pm$ 1.00" in latex and r"Top-1 \%" in latex and r"fashion\_mnist" in latex
    assert "±" not in latex


def test_missing_values_print_a_dash(tmp_path):
    run = record("gcp", "params", 0.1, 0, 0.9)
    for each in run["stages"].values():
        each["throughput"] = None
    paths = report.write(saved(tmp_path, [run]))
    dense, row = cells(tmp_path / "report" / "table.md")
    assert row["Method"] == "GCP-p" and row["Objective"] == "Params"
    assert {row[key] for key in ("Images/s", "Throughput ratio")} == {"-"}
    assert row["Top-1 %"] == "90.00"  # one seed has no deviation
    assert dense["Images/s"] == "-"
    assert not [path for path in paths if "throughput" in path.name]
    assert "nan" not in (tmp_path / "report" / "table.csv").read_text().lower()
    assert "No GCP run shares" in (tmp_path / "report" / "comparison.md").read_text()


def test_a_bare_record_is_no_error():
    runs = report.run_frame([{"method": "gcp", "objective": "macs", "target": 0.5, "seed": 0}])
    [row] = report.summary(runs).to_dict("records")
    assert row["Method"] == "GCP-f" and pd.isna(row["Top-1 %"])
    assert figures.accuracy_cost(runs) is None and figures.widths(runs) is None


def test_scales_never_share_a_row_and_are_named(tmp_path):
    runs = three_seeds() + [record("gcp", "macs", 0.05, 0, 0.2, scale="smoke")]
    report.write(saved(tmp_path, runs))
    rows = cells(tmp_path / "report" / "table.md")
    assert [(row["Method"], row["Seeds"], row["Scale"]) for row in rows] == [
        ("Dense", "3", "reduced"),
        ("GCP-f", "3", "reduced"),
        ("Uniform (L1)", "3", "reduced"),
        ("Dense", "1", "smoke"),
        ("GCP-f", "1", "smoke"),
    ]
    for suffix in ("md", "tex"):
        text = (tmp_path / "report" / f"table.{suffix}").read_text(encoding="utf-8")
        assert "REDUCED scale" in text and "SMOKE scale" in text
    for name in ("accuracy_cost", "accuracy_throughput", "widths_macs_0.05"):
        figure = {
            "accuracy_cost": figures.accuracy_cost,
            "accuracy_throughput": figures.accuracy_throughput,
            "widths_macs_0.05": figures.widths,
        }[name](report.run_frame(runs))
        words = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
        assert "[REDUCED SCALE]" in words and "[SMOKE SCALE]" in words


def labels(runs: list[dict]) -> list[str]:
    return report.run_frame(runs).query("method != 'Dense'").label.tolist()


def test_labels_name_the_variant():
    assert labels(
        [
            record("gcp", "params", 0.1, 0, 0.9),
            record("uniform", "macs", 0.1, 0, 0.9, criterion="random"),
            record("uniform", "macs", 0.1, 0, 0.9, finetune={"extra_epochs": 8}),
            record("gcp", "macs", 0.1, 0, 0.9, round_to=8),
        ]
    ) == ["GCP-p", "Uniform (random)", "Uniform (L1), +8 epochs", "GCP-f, widths x8"]


def test_score_is_named_only_among_several():
    paper, relative = (record("gcp", "macs", 0.1, 0, 0.9, score=score) for score in ("paper", "relative"))
    assert labels([paper]) == ["GCP-f"]
    assert labels([paper, relative]) == ["GCP-f, score=paper", "GCP-f, score=relative"]


def test_runs_that_differ_in_any_option_are_not_averaged():
    runs = [record("gcp", "macs", 0.1, seed, 0.9, iterations=n) for seed in (0, 1) for n in (4, 8)]
    table = report.summary(report.run_frame(runs))
    assert table["Method"].tolist() == ["Dense", "GCP-f, prune.iterations=4", "GCP-f, prune.iterations=8"]
    assert table["Seeds"].tolist() == [2, 2, 2]
    # Other training of the dense network makes another setting: another dense row, no comparison across.
    longer = copy.deepcopy(runs[0])
    longer["config"]["train"]["epochs"] = 40
    longer["fingerprint"] = "longer"
    assert "Dense, train.epochs=40" in report.summary(report.run_frame([*runs, longer]))["Method"].tolist()


def test_the_same_record_found_twice_counts_once():
    run = record("gcp", "macs", 0.1, 0, 0.9)
    assert len(report.run_frame([run, run])) == 2  # dense and pruned


def test_a_dense_run_and_unlike_dense_networks(tmp_path):
    report.write(saved(tmp_path / "a", [record("none", "macs", 1.0, 0, 0.92)]))
    [row] = cells(tmp_path / "a" / "report" / "table.md")
    assert row["Method"] == "Dense" and row["Top-1 %"] == "92.00"
    runs = [record("gcp", "macs", 0.1, 0, 0.9, dense_top1=0.92), record("gcp", "macs", 0.2, 0, 0.9, dense_top1=0.93)]
    report.write(saved(tmp_path / "b", runs))
    assert "CAUTION" in (tmp_path / "b" / "report" / "table.md").read_text(encoding="utf-8")


def test_widths_follow_the_records_order():
    figure = figures.widths(report.run_frame([record("gcp", "macs", 0.05, 0, 0.9)]).query("method != 'Dense'"))
    [axes] = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["conv0 (64)", "stage2 (128)", "stage1 (64)"]
    assert [12.5, 50.0, 25.0] in [list(line.get_ydata()) for line in axes.lines]


def test_every_file_is_made_and_the_same_again(tmp_path):
    runs = three_seeds() + [record("gcp", "params", 0.1, 0, 0.9)]
    paths = report.write(saved(tmp_path / "runs", runs), tmp_path / "one")
    stems = (
        "table.md table.tex table.csv comparison.md comparison.tex comparison.csv accuracy_throughput.png "
        "accuracy_throughput.svg accuracy_cost.png accuracy_cost.svg widths_macs_0.05.png "
        "widths_macs_0.05.svg widths_params_0.1.png widths_params_0.1.svg"
    ).split()
    assert sorted(path.name for path in paths) == sorted(stems)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(stems)
    assert all(path.stat().st_size > (10000 if path.suffix in (".png", ".svg") else 100) for path in paths)
    for path, again in zip(paths, report.write(tmp_path / "runs", tmp_path / "two")):
        assert path.read_bytes() == again.read_bytes(), path.name


@pytest.mark.parametrize("wanted", [[0.9, 0.5, 0.1], [0.5, 0.5, 0.5], [0.52, 0.5, 0.1], [0.9, 0.6, 0.59, 0.5]])
def test_labels_are_spread_apart_around_their_points(wanted):
    levels = figures._spread(wanted, 0.1)
    assert all(a - b >= 0.1 - 1e-9 for a, b in zip(levels, levels[1:]))
    assert sum(levels) == pytest.approx(sum(wanted))  # clusters stay centred
    if wanted == [0.9, 0.5, 0.1]:
        assert levels == pytest.approx(wanted)


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match="missing"):
        report.write(tmp_path / "missing")
    folder = saved(tmp_path / "runs", three_seeds())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        report.write(folder, tmp_path / "file")


def test_script(tmp_path):
    def script(*arguments):
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "report.py"), *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    done = script(saved(tmp_path / "runs", three_seeds()), "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "91.00 ± 1.00" in done.stdout and str(tmp_path / "out" / "accuracy_cost.svg") in done.stdout
    bad = script(tmp_path / "nothing")
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1


def test_published_numbers_are_kept_with_their_sources():
    folder = ROOT / "results" / "reference"
    named = (folder / "README.md").read_text(encoding="utf-8")
    tables = sorted(folder.glob("*.csv"))
    assert len(tables) == 5 and all(f"`{path.name}`" in named for path in tables)
    assert pd.read_csv(folder / "published_reference.csv").source.notna().all()
    # The cells of the paper's own Uniform and GCP rows are not published: they must stay empty.
    rows = pd.read_csv(folder / "prunenet_table_skeleton.csv")
    own = rows[rows.method.str.startswith(("Uniform", "GCP"))]
    assert len(own) and own[["top1_drop", "top5_drop"]].isna().all(axis=None)


def test_dense_networks_of_several_models_make_a_figure_1(tmp_path):
    def dense(model, top1, speed):
        one = record("none", "macs", 1.0, 0, top1, dense_top1=top1, images_per_second=speed)
        one.update(model=model, fingerprint=model)
        one["stages"]["dense"]["throughput"]["images_per_second"] = speed
        return one

    runs = [
        dense("mobilenet0.5", 0.89, 1500.0),
        dense("resnet34_v1b", 0.93, 500.0),
        record("gcp", "macs", 0.5, 0, 0.91, images_per_second=1900.0),
        record("gcp", "macs", 0.5, 1, 0.93, images_per_second=2100.0),
    ]
    networks, kinds = figures.means(report.run_frame(runs))
    assert list(kinds) == ["Dense: mobilenet", "Dense: resnet", "GCP-f"]
    named = networks[networks.name.notna()].set_index("name")
    assert named.images_per_second.to_dict() == {
        "mobilenet0.5": 1500.0,
        "resnet18_v1b": 1000.0,
        "50 %": 2000.0,
        "resnet34_v1b": 500.0,
    }
    assert named.top1["50 %"] == pytest.approx(92.0)
    (chain,) = (list(some.images_per_second) for _, some in networks.groupby("chain"))
    assert sorted(chain) == [1000.0, 2000.0], "a method's line starts at the network that it pruned"
    assert set(figures.pareto(networks).images_per_second) == {500.0, 2000.0}

    names = {path.name for path in report.write(saved(tmp_path, runs), tmp_path / "out")}
    assert {"figure1.png", "figure1.svg", "accuracy_throughput.png"} <= names
    panels = figures.accuracy_throughput(report.run_frame(runs[2:])).axes
    assert len(panels) == 1


def test_a_caption_names_the_networks_of_a_data_set_together():
    runs = [record("none", "macs", 1.0, 0, 0.9), {**record("none", "macs", 1.0, 1, 0.9), "model": "mobilenet1.0"}]
    assert report._whose(report.run_frame(runs)) == "mobilenet1.0, resnet18_v1b on fashion_mnist"


@pytest.mark.parametrize(
    "text, part",
    [("{", "cannot be read as a validation"), ("{}", "lacks 'granularity'"), ("[]", "lacks 'granularity'")],
)
def test_a_broken_validation_is_named(tmp_path, text, part):
    (tmp_path / "a.validation.json").write_text(text)
    with pytest.raises(UserError, match=f"a.validation.json: {part}"):
        report.write_validations(tmp_path)
