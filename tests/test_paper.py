"""The paper's tables: their layout (whole files in tests/golden), drops and bases by hand, labels of reduced runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from finished import finished, rows_of, saved

from gcp.errors import UserError
from gcp.experiment import config
from gcp.report import figure1, figures, frame, paper, tables

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def known():
    return paper.published(REFERENCE)


def run(table, level, method, target, top1, seed=0, *, kept=0.5, model="resnet50_v1d", speed=None, **more):
    """A made-up run of a row: `kept` of the parameters, `target` of the FLOPs, or the other way round."""
    is_params = table in ("table2", "table4")
    params_kept, macs_kept = (target, kept) if is_params else (kept, target)
    return finished(
        method,
        "params" if is_params else "macs",
        target,
        seed,
        top1,
        **{
            "dense_top1": 0.79,
            "scale": "paper",
            "data": "imagenet",
            "round_to": 8,
            "n_eval": 50_000,
            "top5_above": 0.15,
        }
        | more,
        params_kept=params_kept,
        macs_kept=macs_kept,
        model=model,
        paper=(table, level),
        speeds=speed and (speed / 2, speed),
        device="gpu(0)",
    )


def runs_of(name):
    """Made-up runs of one table: two seeds of one row, one of another, a smoke run."""
    if name == "table6":
        return [
            run("table6", 0, "none", 1.0, 0.80, data="caltech256", kept=1.0),
            run(
                "table6",
                1,
                "none",
                1.0,
                0.81,
                data="caltech256",
                starts_from="results/imagenet/table3/gcp-macs-0.643-seed0-0123456789ab/final",
                kept=0.6,
            ),
        ]
    layout = paper.TABLES[name]
    model = {"ResNet-18": "resnet18_v1b", "ResNet-50": "resnet50_v1d", "ResNet-101": "resnet101_v1d"}[layout.network]
    target = paper.levels(name, paper.published(REFERENCE))[1][0]
    # 79 - 77 = 2 and 79 - 76 = 3 points: 2.50 +- 0.71.
    rows = [
        run(name, 1, "gcp", target, 0.77, model=model),
        run(name, 1, "gcp", target, 0.76, 1, model=model),
        run(name, 1, "gcp", target, 0.30, model=model, scale="smoke", data="folder"),
    ]
    if "Uniform" in layout.methods:
        rows.append(run(name, 1, "uniform", target, 0.75, model=model, kept=target))
    return rows


def printed_rows(name, runs, known):
    rows, _ = paper.table(name, paper.TABLES[name], runs, known)
    return tables.formatted(rows, tables.digits_of(paper.MEASURES))


@pytest.mark.parametrize("name", sorted(paper.TABLES))
def test_layout(name, known, tmp_path):
    paths = paper.write_table(name, paper.TABLES[name], runs_of(name), known, tmp_path / name)
    assert [path.suffix for path in paths] == [".md", ".tex", ".csv"]
    for path in paths[:2]:
        # After a change that is meant: write these files anew, and read what changed.
        assert path.read_text(encoding="utf-8") == (GOLDEN / path.name).read_text(encoding="utf-8"), path.name


def test_table1_by_hand(known, tmp_path):
    [path, *_] = paper.write_table("table1", paper.TABLES["table1"], runs_of("table1"), known, tmp_path / "t")
    text = path.read_text(encoding="utf-8")
    dcp, uniform, gcp, ours, other, smoke = rows_of(text)[:6]
    # DCP says errors of 30.36 and 11.02 before, and 69.21 and 88.86 right after.
    assert dcp == {
        "Level": "1: 72.5 % of FLOPs",
        "Method": "DCP",
        "Params reduction": "1.39x",
        "FLOPs reduction": "1.37x",
        "Top-1 drop": "0.43",
        "Top-5 drop": "0.12",
        "Base top-1 %": "69.64",
        "Base top-5 %": "88.98",
        "Top-1 %": "69.21",
        "Top-5 %": "88.86",
        "Seeds": "-",
        "Source": "SCUT-AILab/DCP paper PDF Table 5 + supp Table S4",
    }
    for row in (uniform, gcp):
        assert {row[key] for key in ("Top-1 drop", "Top-5 drop", "Base top-1 %", "Top-1 %", "Top-5 %")} == {"-"}
        assert row["Level"] == ""
    assert ours["Method"] == "this toolkit: GCP-f, widths x8" and ours["Seeds"] == "2"
    assert ours["Top-1 drop"] == "2.50 ± 0.71" and ours["Top-1 %"] == "76.50 ± 0.71"
    assert ours["Base top-1 %"] == "79.00"
    assert (ours["Params reduction"], ours["FLOPs reduction"]) == ("2.00x", "1.38x")  # 1 / 0.5, 1 / 0.725
    assert smoke["Method"] == "this toolkit: GCP-f, widths x8 [SMOKE SCALE]" and smoke["Top-1 drop"] == "49.00"
    assert other["Method"] == "this toolkit: Uniform (L1), widths x8" and other["Top-1 drop"] == "4.00"
    assert "SMOKE scale" in text
    for suffix in (".tex", ".csv"):
        assert "[SMOKE SCALE]" in path.with_suffix(suffix).read_text(encoding="utf-8")
    numbers = pd.read_csv(path.with_suffix(".csv"), na_values="-")
    assert numbers["Top-1 drop"][3] == pytest.approx(2.5)
    assert numbers["Top-1 drop sd"][3] == pytest.approx(0.7071, abs=1e-4)
    assert (path.with_suffix(".tex").read_text(encoding="utf-8").count(r"\midrule")) == 3


def test_caltech_drops_are_from_the_dense_network_of_the_same_seed(known):
    base, pruned = runs_of("table6")
    # Another seed, without its own dense network.
    start = pruned.record.config["model"]["name"].replace("seed0", "seed1")
    other = run("table6", 1, "none", 1.0, 0.81, 1, data="caltech256", kept=0.6, starts_from=start)
    printed = printed_rows("table6", [base, pruned, other], known)
    [dense] = printed[printed.Level == "0: not pruned"].to_dict("records")
    assert dense["Method"] == "this toolkit: Dense" and dense["Top-1 drop"] == "0.00"
    [ours] = printed[printed.Method.str.startswith("this toolkit: GCP")].to_dict("records")
    assert ours["Level"] == "1: 64.3 % of FLOPs, chosen" and ours["Top-1 drop"] == "-1.00" and ours["Seeds"] == "2"
    assert ours["Params reduction"] == "1.67x"  # 1 / 0.6, of the seed whose dense network is there


def test_every_published_row_is_placed_once_or_counted(known):
    for name, layout in paper.TABLES.items():
        frame, n_unplaced = paper.table(name, layout, [], known)
        others = known.published[(known.published.network == layout.network) & (known.published.data == layout.data)]
        papers = sum(len(rows) for _, rows in paper.levels(name, known).values())
        quoted = sum(frame.Method.isin({"DCP", "ThiNet", "CP"}))
        assert len(frame) == papers + len(others) - quoted - n_unplaced, name


def test_bases_are_those_that_the_sources_state(known):
    raw = pd.read_csv(REFERENCE / "published_reference.csv")
    for row, line in zip(raw.itertuples(), known.published.itertuples()):
        stated = re.search(r"\bbase (\d\d\.\d+)(?:/(\d\d\.\d+))?", str(row.notes))
        if stated and "derived" not in row.notes and "ResNet-101" != row.network:
            assert known.published["Base top-1 %"][line.Index] == pytest.approx(float(stated[1]), abs=0.051), row
    dcp = known.published[known.published.Method == "DCP-30%"].set_index("network")
    assert dcp["Base top-1 %"]["ResNet-18"] == pytest.approx(100 - 30.36)
    assert dcp["Base top-5 %"]["ResNet-50"] == pytest.approx(100 - 7.07)
    for row in known.published.dropna(subset=["Base top-1 %", "Top-1 %", "Top-1 drop"]).to_dict("records"):
        assert row["Base top-1 %"] - row["Top-1 %"] == pytest.approx(row["Top-1 drop"], abs=1e-6)


def test_the_seven_released_networks_stand_in_the_tables(known):
    shown = set()
    for name in ("table1", "table3", "table5"):
        printed, _ = paper.table(name, paper.TABLES[name], [], known)
        shown |= set(printed.Method[printed.Method.str.endswith("(released)")])
    assert len(shown) == 7


def test_no_cell_of_the_papers_own_rows_is_made_up(known):
    for name, layout in paper.TABLES.items():
        frame, _ = paper.table(name, layout, [], known)
        own = frame[frame.Method.isin(layout.methods)]
        assert len(own)
        assert own[["Top-1 drop", "Top-5 drop", "Top-1 %", "Top-5 %", "Base top-1 %"]].isna().all(axis=None)


def test_configs_and_layouts_agree(known):
    for path in (ROOT / "configs").rglob("table*/*.yaml"):
        cfg = None if path.name.startswith("_") else config.load(path)
        if cfg is None or not cfg.paper.level:
            continue
        layout, targets = paper.TABLES[cfg.paper.table], paper.levels(cfg.paper.table, known)
        source = config.load(ROOT / cfg.paper.starts_from) if cfg.paper.starts_from else cfg
        assert source.prune.target == targets[cfg.paper.level][0], path
        assert cfg.paper.chosen == (cfg.paper.level > len(targets) - len(layout.chosen)), path


def test_other_targets_and_options_are_not_averaged(known):
    runs = [
        run("table3", 3, "gcp", 0.29, 0.7),
        run("table3", 3, "gcp", 0.31, 0.7, 1),
        run("table3", 3, "gcp", 0.29, 0.7, 1, iterations=8),
    ]
    printed = printed_rows("table3", runs, known)
    assert printed.Method[printed.Method.str.startswith("this toolkit")].tolist() == [
        "this toolkit: GCP-f, widths x8, prune.iterations=4",
        "this toolkit: GCP-f, widths x8, prune.iterations=8",
        "this toolkit: GCP-f, widths x8, target 31 %",
    ]


@pytest.mark.slow
def test_only_tables_with_records_are_written_and_twice_alike(tmp_path):
    runs = [*runs_of("table3"), run("table3", 3, "gcp", 0.29, 0.7), run("table4", 3, "gcp", 0.341, 0.7)]
    for name in "ab":
        (tmp_path / name).mkdir()
    paths = paper.write(runs, REFERENCE, tmp_path / "a")
    stems = {
        "paper_table3": (".md", ".tex", ".csv"),
        "paper_table4": (".md", ".tex", ".csv"),
        "paper_figure2": (".png", ".svg"),
        "paper_figure3": (".png", ".svg"),
    }
    assert {p.name for p in paths} == {stem + suffix for stem, suffixes in stems.items() for suffix in suffixes}
    for path, again in zip(paths, paper.write(runs[::-1], REFERENCE, tmp_path / "b")):
        assert path.read_bytes() == again.read_bytes(), path.name
    assert paper.write([], REFERENCE, tmp_path) == []
    assert len(paper.write([], REFERENCE, tmp_path, every=True)) == 18


@pytest.mark.slow
def test_figure1_gets_our_points_on_imagenet_only(tmp_path):
    runs = [run("table3", 3, "gcp", 0.29, 0.76, seed, speed=3000.0 + 100 * seed) for seed in range(3)]
    runs += [
        run("table3", 3, "gcp", 0.29, 0.3, scale="smoke", data="folder", speed=9e4),
        run("table3", 3, "gcp", 0.29, 0.3, 5),
        run("figure1", 0, "none", 1.0, 0.79, speed=1000.0, kept=1.0),
    ]
    points = paper.measured_points(runs).set_index("name")
    assert set(points.index) == {"resnet50_v1d: GCP-f, widths x8 29 %", "resnet50_v1d: Dense"}
    ours = points.loc["resnet50_v1d: GCP-f, widths x8 29 %"]
    assert ours.top1 == pytest.approx(76) and ours.images_per_second == 3100 and ours.kind == figures.OURS
    paths = paper.write(runs, REFERENCE, tmp_path)
    assert tmp_path / "paper_figure1.svg" in paths


@pytest.mark.slow
def test_no_figure_1_overwrites_another(known, tmp_path, monkeypatch):
    """The paper's with our networks, the published networks on two devices, and our own of the same runs."""
    monkeypatch.setattr(figures, "figure1", lambda *arguments: "figure 1")
    monkeypatch.setattr(figures, "save", lambda figure, stem: [stem] if figure == "figure 1" else [])
    monkeypatch.setattr(paper, "write_table", lambda *arguments: [])
    monkeypatch.setattr(tables, "save", lambda *arguments: [])
    runs = [run("figure1", 0, "none", 1.0, 0.7, kept=1.0, speed=9.0, model=model) for model in ("vgg11", "vgg13")]
    timed = {"name": "vgg11", "latency_s": 1.0, "images_per_second": 1.0, "macs": 1, "params": 1, "noisy": False}
    setup = {"runtime": "mxnet", "device": "cpu", "dtype": "float32", "batch": 1, "threads": 1}
    measured = {"setup": setup, "input": [3, 8, 8], "hardware": {"cpu": "CPU"}}
    paths = paper.write(runs, REFERENCE, tmp_path) + figures.write(frame.frame(runs), tmp_path)
    paths += figure1.write(known.networks, {**measured, "networks": [{**timed, "spread": 0.0, "n": 5}]}, tmp_path)
    assert len(paths) == len({path.name.lower() for path in paths}) == 4


def test_errors(tmp_path):
    with pytest.raises(UserError, match="published_reference.csv"):
        paper.write([], tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_the_script_writes_the_tables_of_the_records(tmp_path):
    saved(tmp_path, runs_of("table2"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "report.py"), str(tmp_path), "--paper"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "The paper's Table 2" in done.stdout and "The paper's Table 6" in done.stdout
    assert (tmp_path / "report" / "paper_table2.tex").is_file()
