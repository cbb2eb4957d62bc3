"""The report room on hand-made records: numbers that can be checked by hand, missing cells, labels, files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from finished import finished, rows_of, saved

from gcp.errors import UserError
from gcp.experiment.record import Finished, load_records
from gcp.report import figures, frame, tables

ROOT = Path(__file__).parent.parent


def three_seeds() -> list[Finished]:
    # GCP 0.90, 0.91, 0.92 -> 91.00 +- 1.00; dense 0.92, 0.92, 0.95 -> 93.00 +- 1.73;
    # drops 2, 1, 3 -> 2.00 +- 1.00; uniform one point, one point and two points below GCP -> +1.33 +- 0.58.
    runs = []
    for seed, (dense, ours, other) in enumerate([(0.92, 0.90, 0.89), (0.92, 0.91, 0.90), (0.95, 0.92, 0.90)]):
        slow, fast = (1000.0, 2000.0 + 500 * seed), (1000.0, 3000.0 + 1000 * seed)
        runs.append(finished("uniform", "macs", 0.05, seed, other, dense_top1=dense, speeds=slow))
        runs.append(finished("gcp", "macs", 0.05, seed, ours, dense_top1=dense, speeds=fast))
    return runs


def cells(markdown: Path) -> list[dict[str, str]]:
    return rows_of(markdown.read_text(encoding="utf-8"))


def written(runs: list[Finished], output: Path) -> list[Path]:
    with tables.writing(output, "--output"):
        return tables.write(frame.frame(runs), output)


def test_table_by_hand(tmp_path):
    written(three_seeds(), tmp_path)
    dense, ours, other = cells(tmp_path / "table.md")
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


def test_accuracies_on_validation_images(tmp_path):
    run = finished("uniform", "macs", 0.05, 0, 0.89, dense_top1=0.92)
    with pytest.raises(UserError, match="lacks its accuracy"):
        frame.frame([run], "validation")
    stages = run.record.stages
    on_validation = {
        name: getattr(stages, name).model_copy(
            update={"validation_top1": top1, "validation_top5": 0.9, "n_validation": 400}
        )
        for name, top1 in (("dense", 0.8), ("final", 0.75))
    }
    record = run.record.model_copy(update={"stages": stages.model_copy(update=on_validation)})
    runs = frame.frame([run._replace(record=record)], "validation")
    tables.write(runs, tmp_path)
    dense, uniform = cells(tmp_path / "table.md")
    assert (dense["Top-1 %"], uniform["Top-1 %"], uniform["Drop (points)"]) == ("80.00", "75.00", "5.00")
    assert uniform["Top-1 % before fine-tuning"] == "-"
    assert "on 400 validation images" in (tmp_path / "table.md").read_text()


def test_comparison_by_hand(tmp_path):
    written(three_seeds(), tmp_path)
    [row] = cells(tmp_path / "comparison.md")
    assert (row["Method"], row["Other"], row["Seeds"], row["Equal cost"]) == ("GCP-f", "Uniform (L1)", "3", "yes")
    assert row["Top-1 difference (points)"] == "+1.33 ± 0.58"
    assert (row["Cost kept %"], row["Cost difference %"]) == ("5.00", "0.00")
    assert (row["Images total"], row["Images total, other"]) == ("340,000", "300,000")


@pytest.mark.parametrize("achieved, equal", [((0.0509, 0.0491), "yes"), ((0.0512, 0.0488), "NO")])
def test_equal_cost_is_held_by_every_seed(tmp_path, achieved, equal):
    # Over two seeds the mean difference is zero in both cases; each seed alone decides.
    runs = [finished("uniform", "macs", 0.05, seed, 0.9, macs_kept=0.05) for seed in range(2)]
    runs += [finished("gcp", "macs", 0.05, seed, 0.9, macs_kept=kept) for seed, kept in enumerate(achieved)]
    written(runs, tmp_path)
    [row] = cells(tmp_path / "comparison.md")
    assert row["Equal cost"] == equal and row["Cost difference %"] == "0.00"


def test_comparison_uses_shared_seeds_and_same_targets_only():
    runs = frame.frame(
        [
            finished("gcp", "macs", 0.05, 0, 0.90),
            finished("gcp", "macs", 0.05, 1, 0.95),
            finished("uniform", "macs", 0.05, 1, 0.93),
            finished("uniform", "macs", 0.2, 0, 0.91),
            finished("uniform", "params", 0.05, 0, 0.91),
        ]
    )
    table = tables.comparison(runs)
    assert len(table) == 1 and table["Seeds"][0] == 1
    assert table["Top-1 difference (points)"][0] == pytest.approx(2.0)
    assert pd.isna(table["Top-1 difference (points) sd"][0])


def test_csv_holds_numbers_and_latex_is_escaped(tmp_path):
    written(three_seeds(), tmp_path)
    table = pd.read_csv(tmp_path / "table.csv", na_values="-")
    assert table["Top-1 %"].tolist() == pytest.approx([93.0, 91.0, 89.6667], abs=1e-3)
    assert table["Top-1 % sd"].tolist() == pytest.approx([1.73205, 1.0, 0.57735], abs=1e-4)
    assert table["Data"].tolist() == ["fashion_mnist"] * 3
    latex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert r"91.00 $\pm$ 1.00" in latex and r"Top-1 \%" in latex and r"fashion\_mnist" in latex
    assert "±" not in latex


def test_missing_values_print_a_dash(tmp_path):
    run = finished("gcp", "params", 0.1, 0, 0.9, speeds=None)
    written([run], tmp_path)
    dense, row = cells(tmp_path / "table.md")
    assert row["Method"] == "GCP-p" and row["Objective"] == "Params"
    assert {row[key] for key in ("Images/s", "Throughput ratio")} == {"-"} == {dense["Images/s"]}
    assert row["Top-1 %"] == "90.00"  # one seed has no deviation
    assert figures.accuracy_throughput(frame.frame([run])) is None
    assert "nan" not in (tmp_path / "table.csv").read_text().lower()
    assert "No GCP run shares" in (tmp_path / "comparison.md").read_text()
    assert pd.read_csv(tmp_path / "comparison.csv").empty


def test_a_noisy_timing_is_marked(tmp_path):
    quiet, noisy = finished(seed=0), finished(seed=1, noisy=True)
    written([quiet], tmp_path / "quiet")
    written([quiet, noisy], tmp_path / "noisy")
    assert [row["Images/s"] for row in cells(tmp_path / "quiet" / "table.md")] == ["1,000", "2,000"]
    assert [row["Throughput ratio"] for row in cells(tmp_path / "noisy" / "table.md")] == ["1.00*", "2.00*"]
    assert [row["Speed"] for row in cells(tmp_path / "noisy" / "short.md")] == ["1.00*", "2.00*"]
    for name in ("table.md", "short.md"):
        texts = [(tmp_path / folder / name).read_text(encoding="utf-8") for folder in ("quiet", "noisy")]
        assert ["timing was noisy" in " ".join(text.split()) for text in texts] == [False, True]
    assert pd.read_csv(tmp_path / "noisy" / "table.csv")["Images/s noisy"].tolist() == [True, True]


def test_latency_of_another_processor_is_no_achieved_budget():
    def run(method, *cpu):
        return finished(method, "latency", 0.5, latency=(0.49, *cpu), noisy=method == "uniform")

    [row] = tables.comparison(frame.frame([run("gcp", "Test CPU"), run("uniform", "Test CPU")])).to_dict("records")
    assert row["Cost kept %"] == pytest.approx(49) and row["Equal cost"] == "yes"
    assert (row["Cost kept % noisy"], row["Cost kept %, other noisy"]) == (False, True)
    for other in (run("uniform", "Other CPU"), run("uniform", "Test CPU", "model 2")):
        [row] = tables.comparison(frame.frame([run("gcp", "Test CPU", "model 1"), other])).to_dict("records")
        assert row["Cost kept %"] == pytest.approx(49) and pd.isna(row["Cost kept %, other"])
        assert row["Equal cost"] is None


@pytest.mark.parametrize(
    "device, gpu, kept",
    [("gpu(0)", "GPU A", 49), ("gpu(0)", "GPU B", None), ("gpu(0)", None, 49), ("cpu", "GPU B", 49)],
)
def test_latency_of_another_gpu_is_no_achieved_budget(device, gpu, kept):
    """It matters where the latency is the GPU's, and is known."""
    run = finished("gcp", "latency", 0.5, device=device, gpu="GPU A", latency=(0.49, "Test CPU", "model 1", gpu))
    (found,) = frame.frame([run]).query("method != 'Dense'").cost_kept
    assert found == pytest.approx(kept or float("nan"), nan_ok=True)


def test_the_short_table_fits_a_terminal_and_states_its_noise(tmp_path):
    runs = [finished("uniform"), finished(), finished(top1=0.91, seed=1)]
    runs += [finished("gcp", "params", 0.1, recover_epochs=n / 7, lam=[0.1, 0.01], score="paper") for n in (1, 2)]
    runs += [finished("gcp", "params", 0.2, score="paper")]
    written(runs, tmp_path)
    text = (tmp_path / "short.md").read_text(encoding="utf-8")
    rows = rows_of(text)
    assert all(len(line) <= 120 for line in text.split("The full table")[0].splitlines())
    assert set(map(len, rows)) == {6} and f"The full table: {tmp_path / 'table.md'}" in text
    # Two seeds: their deviation. One: sqrt(0.9 * 0.1 / 10,000) = 0.3 points.
    top1 = {row["Method"] + " " + row["Target"]: row["Top-1 %"] for row in rows}
    assert top1["GCP-f, score=relative 5 % of MACs"] == "90.50 ± 0.71"
    [params] = [value for name, value in top1.items() if name.endswith("20 % of Params")]
    assert params == "90.00 ± 0.30"
    assert "deviation over seeds" in text and "standard error of an accuracy on 10,000 test images" in " ".join(
        text.split()
    )


def test_the_short_table_names_lists_whole():
    runs = [finished(finetune={"step_epochs": [10, later]}) for later in (20, 30)]
    text = tables.short(frame.frame(runs), Path("table.md"))
    assert [row["Method"] for row in rows_of(text)[1:]] == [f"GCP-f, step_epochs=[10, {n}]" for n in (20, 30)]
    assert "All pruned networks" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a-0.5", "a.b-0.05", "plain"])
def test_no_part_of_a_name_is_lost(tmp_path, name):
    table = pd.DataFrame({"n": [1]})
    assert [p.name for p in tables.save(table, {"n": 0}, "", tmp_path / name, "")] == [
        f"{name}{s}" for s in (".md", ".tex", ".csv")
    ]
    figure = figures.accuracy_cost(frame.frame([finished()]))
    assert [path.name for path in figures.save(figure, tmp_path / name)] == [f"{name}.png", f"{name}.svg"]


@pytest.mark.slow
def test_scales_never_share_a_row_and_are_named(tmp_path):
    runs = three_seeds() + [finished("gcp", "macs", 0.05, 0, 0.2, scale="smoke")]
    written(runs, tmp_path)
    rows = cells(tmp_path / "table.md")
    assert [(row["Method"], row["Seeds"], row["Scale"]) for row in rows] == [
        ("Dense", "3", "reduced"),
        ("GCP-f", "3", "reduced"),
        ("Uniform (L1)", "3", "reduced"),
        ("Dense", "1", "smoke"),
        ("GCP-f", "1", "smoke"),
    ]
    for suffix in ("md", "tex"):
        text = (tmp_path / f"table.{suffix}").read_text(encoding="utf-8")
        assert "REDUCED scale" in text and "SMOKE scale" in text
    for name in ("accuracy_cost", "accuracy_throughput", "widths_macs_0.05"):
        figure = {
            "accuracy_cost": figures.accuracy_cost,
            "accuracy_throughput": figures.accuracy_throughput,
            "widths_macs_0.05": figures.widths,
        }[name](frame.frame(runs))
        words = " ".join(axes.get_title(loc="left") for axes in figure.axes)
        assert "[REDUCED SCALE]" in words and "[SMOKE SCALE]" in words


def labels(runs: list[Finished]) -> list[str]:
    return frame.frame(runs).query("method != 'Dense'").label.tolist()


def test_labels_name_the_variant():
    assert labels(
        [
            finished("gcp", "params", 0.1, 0, 0.9),
            finished("uniform", "macs", 0.1, 0, 0.9, criterion="random"),
            finished("uniform", "macs", 0.1, 0, 0.9, finetune={"extra_epochs": 8}),
            finished("gcp", "macs", 0.1, 0, 0.9, round_to=8),
        ]
    ) == ["GCP-p", "Uniform (random)", "Uniform (L1), +8 epochs", "GCP-f, widths x8"]


def test_score_is_named_only_among_several():
    paper, relative = (finished("gcp", "macs", 0.1, 0, 0.9, score=score) for score in ("paper", "relative"))
    assert labels([paper]) == ["GCP-f"]
    assert labels([paper, relative]) == ["GCP-f, score=paper", "GCP-f, score=relative"]


def test_a_line_has_one_name_at_all_of_its_targets():
    some = [finished(target=target, iterations=n) for target, n in ((0.1, 4), (0.2, 4), (0.2, 1))]
    assert labels(some) == [f"GCP-f, prune.iterations={n}" for n in (4, 4, 1)]
    assert labels(some[:2]) == ["GCP-f", "GCP-f"]


def test_runs_that_differ_in_any_option_are_not_averaged():
    runs = [finished("gcp", "macs", 0.1, seed, 0.9, iterations=n) for seed in (0, 1) for n in (4, 8)]
    table = tables.summary(frame.frame(runs))
    assert table["Method"].tolist() == ["Dense", "GCP-f, prune.iterations=4", "GCP-f, prune.iterations=8"]
    assert table["Seeds"].tolist() == [2, 2, 2]
    # Other training of the dense network makes another setting: another dense row, no comparison across.
    longer = finished("gcp", "macs", 0.1, 0, 0.9, train={"epochs": 40})
    assert "Dense, train.epochs=40" in tables.summary(frame.frame([*runs, longer]))["Method"].tolist()


def test_runs_that_differ_in_what_affects_no_result_are_averaged():
    runs = [finished(seed=seed, data="imagenet") for seed in (0, 1)]
    for run, values in zip(runs, ({"workers": 4, "root": "a"}, {"workers": 8, "root": "b"})):
        run.record.config["data"].update(values)
        run.record.config["model"]["weights"] = values["root"]
    assert tables.summary(frame.frame(runs)).Seeds.tolist() == [2, 2]


def test_the_same_record_found_twice_counts_once():
    run = finished("gcp", "macs", 0.1, 0, 0.9)
    assert len(frame.frame([run, run])) == 2  # dense and pruned


def test_a_dense_run_and_unlike_dense_networks(tmp_path):
    written([finished("none", "macs", 1.0, 0, 0.92)], tmp_path / "a")
    [row] = cells(tmp_path / "a" / "table.md")
    assert row["Method"] == "Dense" and row["Top-1 %"] == "92.00"
    runs = [
        finished("gcp", "macs", 0.1, 0, 0.9, dense_top1=0.92),
        finished("gcp", "macs", 0.2, 0, 0.9, dense_top1=0.93),
    ]
    written(runs, tmp_path / "b")
    assert "CAUTION" in (tmp_path / "b" / "table.md").read_text(encoding="utf-8")


def test_widths_follow_the_records_order():
    figure = figures.widths(frame.frame([finished("gcp", "macs", 0.05, 0, 0.9)]).query("method != 'Dense'"))
    [axes] = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["conv0 (64)", "stage2 (128)", "stage1 (64)"]
    assert [12.5, 50.0, 25.0] in [list(line.get_ydata()) for line in axes.lines]


def test_widths_that_a_search_made_wider_are_in_the_picture():
    run = finished("gcp", "macs", 0.05, 0, 0.9)
    widths = run.record.widths.model_copy(update={"final": {"conv0": 96, "stage2": 64, "stage1": 16}})
    run = run._replace(record=run.record.model_copy(update={"widths": widths}))
    (axes,) = figures.widths(frame.frame([run]).query("method != 'Dense'")).axes
    assert max(max(line.get_ydata()) for line in axes.lines) == 150 < axes.get_ylim()[1]


@pytest.mark.slow
def test_every_file_is_made_and_the_same_again(tmp_path):
    runs = three_seeds() + [finished("gcp", "params", 0.1, 0, 0.9)]
    table = frame.frame(runs)
    paths, again = (written(runs, tmp_path / n) + figures.write(table, tmp_path / n) for n in ("one", "two"))
    stems = (
        "table.md table.tex table.csv comparison.md comparison.tex comparison.csv short.md accuracy_throughput.png "
        "accuracy_throughput.svg accuracy_cost.png accuracy_cost.svg widths_macs_0.05.png "
        "widths_macs_0.05.svg widths_params_0.1.png widths_params_0.1.svg"
    ).split()
    assert sorted(path.name for path in paths) == sorted(stems)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(stems)
    assert all(path.stat().st_size > (10000 if path.suffix in (".png", ".svg") else 100) for path in paths)
    for one, other in zip(paths, again):
        assert one.name == "short.md" or one.read_bytes() == other.read_bytes(), one.name  # it names its folder


@pytest.mark.parametrize(
    "top1", [(0.9, 0.5, 0.1), (0.5, 0.5, 0.5), (0.52, 0.5, 0.1), (0.9, 0.6, 0.59), (0.5, 0.5, 0.51, 0.51, 0.52, 0.9)]
)
def test_names_of_lines_do_not_cover_one_another(top1):
    runs = [finished(top1=a, iterations=n) for n, a in enumerate(top1, 1)]
    ax = figures.accuracy_throughput(frame.frame(runs)).axes[0]
    names = [text for text in ax.texts if "prune.iterations" in text.get_text()]
    boxes = sorted((text.get_window_extent() for text in names), key=lambda box: box.y0)
    assert len(names) == len(top1) and all(below.y1 <= above.y0 for below, above in zip(boxes, boxes[1:]))
    order = sorted(names, key=lambda text: text.get_position()[1])
    ends = [top1[int(text.get_text()[-1]) - 1] for text in order]
    assert ends == sorted(ends), "names stand in the order of what they name"


def test_milliseconds_are_parts_of_the_dense_networks_median():
    """20 ms of 10, 20 and 30, whatever the host did when a network was timed; others have no measured time."""
    cpu = ("Test CPU", "model 1", None)
    runs = [
        finished("gcp", "latency", t, seed, latency=(t, *cpu), dense_s=s)
        for seed, (t, s) in enumerate(((0.4, 0.01), (0.4, 0.02), (0.2, 0.03)))
    ]
    others = [finished("uniform", "macs", 0.4), finished("uniform", "latency", 0.4, latency=(0.4, *cpu))]
    (ax,) = figures.accuracy_latency(frame.frame([*runs, *others])).axes
    assert "20 ms" in ax.get_title(loc="left") or any("20 ms" in text.get_text() for text in ax.texts)
    drawn = {line.get_label(): line.get_xdata() for line in ax.lines if not line.get_label().startswith("_")}
    assert [x for name, x in drawn.items() if "GCP" in name] == [pytest.approx([8.0, 4.0])]
    assert not any("Uniform" in name for name in drawn)
    assert figures.accuracy_latency(frame.frame(others)) is None


def test_long_names_of_lines_leave_the_panel_its_place():
    """Variants that differ in many options have names that are longer than the figure is wide."""
    many = {"regularise_epochs": 0.125, "recover_epochs": 0.125, "max_cut": 0.2, "penalised": "removable", "lr": 0.02}
    runs = [finished(), finished(iterations=2, **many)]
    ax = figures.accuracy_throughput(frame.frame(runs)).axes[0]
    assert max(len(line.get_label()) for line in ax.lines) > 120
    assert ax.get_position().width > 0.4


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match="missing"):
        load_records(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output"):
        written(three_seeds(), tmp_path / "file")


@pytest.mark.slow
def test_a_line_is_one_method_at_one_objective_along_the_x_axis():
    # By parameters 10 % keeps more MACs than by MACs: one line through both would go to and fro.
    runs = [
        finished("uniform", "macs", 0.5, top1=0.91, macs_kept=0.5, speeds=(1000.0, 1500.0)),
        finished("uniform", "macs", 0.05, top1=0.88, macs_kept=0.05, speeds=(1000.0, 9000.0)),
        finished("uniform", "macs", 0.2, top1=0.9, macs_kept=0.2, speeds=(1000.0, 8000.0)),
        finished("uniform", "params", 0.3, top1=0.87, macs_kept=0.3, speeds=(1000.0, 3000.0)),
        finished("uniform", "params", 0.1, top1=0.89, macs_kept=0.1, speeds=(1000.0, 5000.0)),
    ]
    table = frame.frame(runs)
    seeds = figures.points(table, "macs_kept")
    assert seeds.groupby("line").size().to_dict() == {"Dense": 1, "Uniform (L1) (MACs)": 3, "Uniform (L1) (Params)": 2}
    drawn = {}
    for figure in (figures.accuracy_cost(table), figures.accuracy_throughput(table)):
        for ax in figure.axes:
            for line in ax.lines:
                if line.get_label().startswith("Uniform"):
                    x = list(line.get_xdata())
                    assert x in (sorted(x), sorted(x, reverse=True)), (line.get_label(), x)
                    drawn.setdefault(line.get_label(), []).append(len(x))
    assert drawn == {"Uniform (L1) (MACs)": [3, 3, 3], "Uniform (L1) (Params)": [2, 2, 2]}
    networks, _ = figures.networks_of(table)
    chains = networks.dropna(subset="chain").groupby("chain").target.apply(lambda targets: sorted(targets.dropna()))
    assert sorted(chains) == [[0.05, 0.2, 0.5], [0.1, 0.3]]


@pytest.mark.slow
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
    assert "91.00 ± 1.00" in done.stdout and max(map(len, done.stdout.splitlines())) < 121 + len(str(tmp_path))
    assert str(tmp_path / "out" / "accuracy_cost.svg") in done.stdout
    bad = script(tmp_path / "nothing")
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1


def test_published_numbers_are_kept_with_their_sources():
    folder = ROOT / "results" / "reference"
    named = (folder / "README.md").read_text(encoding="utf-8")
    published = sorted(folder.glob("*.csv"))
    assert len(published) == 5 and all(f"`{path.name}`" in named for path in published)
    assert pd.read_csv(folder / "published_reference.csv").source.notna().all()
    # The cells of the paper's own Uniform and GCP rows are not published: they must stay empty.
    rows = pd.read_csv(folder / "prunenet_table_skeleton.csv")
    own = rows[rows.method.str.startswith(("Uniform", "GCP"))]
    assert len(own) and own[["top1_drop", "top5_drop"]].isna().all(axis=None)


@pytest.mark.slow
def test_dense_networks_of_several_models_make_a_figure_1(tmp_path):
    runs = [
        finished("none", "macs", 1.0, 0, 0.89, dense_top1=0.89, model="mobilenet0.5", speeds=(1500.0, 1500.0)),
        finished("none", "macs", 1.0, 0, 0.93, dense_top1=0.93, model="resnet34_v1b", speeds=(500.0, 500.0)),
        finished("gcp", "macs", 0.5, 0, 0.91, speeds=(1000.0, 1900.0)),
        finished("gcp", "macs", 0.5, 1, 0.93, speeds=(1000.0, 2100.0)),
    ]
    networks, kinds = figures.networks_of(frame.frame(runs))
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

    names = {path.name for path in figures.write(frame.frame(runs), tmp_path)}
    stem = "figure1_fashion_mnist_reduced_batch-64-float32-cpu-test-cpu-2-threads"
    assert {f"{stem}.png", f"{stem}.svg", "accuracy_throughput.png"} <= names
    panels = figures.accuracy_throughput(frame.frame(runs[2:])).axes
    assert len(panels) == 1


@pytest.mark.slow
def test_every_data_set_scale_and_device_has_its_own_figure_1(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "figure1", lambda *arguments: "figure 1")
    monkeypatch.setattr(figures, "save", lambda figure, stem: [stem] if figure == "figure 1" else [])
    places = [{"data": "a"}, {"data": "b"}, {"data": "b", "scale": "smoke"}, {"data": "a", "device": "gpu(0)"}]
    runs = [finished("none", "macs", 1.0, model=model, **place) for place in places for model in ("vgg11", "vgg13")]
    paths = figures.write(frame.frame(runs), tmp_path)
    assert len(paths) == len(set(paths)) == len(places)


def test_a_caption_names_the_networks_of_a_data_set_together():
    runs = [finished("none", "macs", 1.0), finished("none", "macs", 1.0, model="mobilenet1.0")]
    assert tables.whose(frame.frame(runs)) == "mobilenet1.0, resnet18_v1b on fashion_mnist"


@pytest.mark.parametrize("text, part", [("{", "not valid JSON"), ("{}", "network is missing"), ("[]", "should be")])
def test_a_broken_validation_is_named(tmp_path, text, part):
    (tmp_path / "a.validation.json").write_text(text)
    with pytest.raises(UserError, match=f"a.validation.json: .*{part}.*latency.py validate"):
        tables.write_validations(tmp_path)


def test_of_copies_the_timed_one_is_taken_and_differing_ones_are_told():
    timed, other = finished(seed=0), finished(seed=0, top1=0.1)
    copy = timed._replace(speeds=None, path=Path("copy"))
    assert frame.unique([copy, timed, copy]) == [timed]
    kept, differing = frame.told_apart([copy, timed])
    assert (kept, differing) == ([timed], {})
    kept, differing = frame.told_apart([copy, timed, other._replace(path=Path("other"))])
    assert [run.record.stages.final.top1 for run in kept] == [timed.record.stages.final.top1, 0.1]
    assert set(differing) == {str(timed.path), "other"}


def test_numbers_of_workers_are_told_apart():
    """Batch norm normalises each worker's part by itself; one worker is what a run has by default."""
    runs = [finished(seed=0, top1=0.9), finished(seed=1, top1=0.8), finished(seed=0, top1=0.5)]
    for k, (run, workers) in enumerate(zip(runs, (None, 1, 2))):
        config = {**run.record.config, "workers": workers, "gpus": []}
        runs[k] = run._replace(record=run.record.model_copy(update={"config": config, "fingerprint": f"{k:012x}"}))
    found = frame.frame(runs)
    labels = found[found.method != "Dense"].label
    assert labels.nunique() == 2 and labels.iloc[0] == labels.iloc[1] and "workers=2" in labels.iloc[2]


def test_every_named_method_has_a_look_of_its_own():
    methods = ["uniform-l1", *(f"gcp-{n}" for n in range(20))]
    rows = [
        {"method": method, "target": target, "seed": 0, "top1": 0.8 + 0.001 * n, "objective": "macs"}
        for n, method in enumerate(methods)
        for target in (0.1, 0.2)
    ]
    runs = pd.DataFrame(rows).assign(network="a", data="b", scale="reduced")
    [ax] = figures.accuracy_bars(runs, methods[:0:-1], "uniform-l1").axes
    named = {line.get_label(): line for line in ax.lines if str(line.get_label()).startswith("gcp-")}
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in named.values()}
    assert len(named) == len(looks) == 20
    assert sorted(ax.get_xticks()) == [10, 20], "the targets"
