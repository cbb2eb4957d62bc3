"""The paper's Figure 1: which networks are compared, resuming, and comparisons that can be checked by hand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from gcp.errors import UserError
from gcp.report import figure1, figures

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference"
SETUP = {"runtime": "mxnet", "device": "cpu", "dtype": "float32", "batch": 64, "threads": 2}
HARDWARE = {"cpu": "Test_CPU 100%", "versions": {}, "date": "2026-01-01", "git_commit": None}


@pytest.fixture(scope="module")
def networks():
    return figure1.published(REFERENCE)


def row(name, images_per_second, noisy=False):
    return {
        "name": name,
        "latency_s": 64 / images_per_second,
        "spread": 0.12 if noisy else 0.02,
        "n": 5,
        "noisy": noisy,
        "images_per_second": images_per_second,
        "macs": 2_500_000_000,
        "params": 1000,
    }


def both(*lines):
    """name, kind, base, top-1, images per second there, here."""
    there = pd.DataFrame(lines, columns=["name", "kind", "base", "top1", "images_per_second", "cpu"])
    return figure1.joined(there.drop(columns="cpu"), [row(name, cpu) for name, cpu in zip(there.name, there.cpu)])


FOUR = both(
    ("small", "MobileNet", None, 60.0, 1000.0, 50.0),
    ("pruned", "PruneNet", "base", 60.0, 900.0, 60.0),
    ("big", "MobileNetV2", None, 65.0, 500.0, 10.0),
    ("base", "Base ResNet", None, 70.0, 300.0, 20.0),
)


# ---- what is compared ----------------------------------------------------------------------------------------------


def test_the_published_networks(networks):
    assert len(networks) == 60 and networks.name[0] == "mobilenet0.25"
    released = pd.read_csv(REFERENCE / "released_prunenets.csv")
    pruned = networks[networks.kind == figures.PRUNENET].set_index("name")
    assert dict(pruned.base) == dict(zip(released.model, released.base_model))
    for name, speed in zip(released.model, released.fig1_throughput_img_s):  # two files, one plot
        assert pruned.images_per_second[name] == speed


def test_the_networks_that_are_timed(networks):
    some = figure1.to_measure(networks)
    assert {kind: list(same.name) for kind, same in some.groupby("kind")} == {
        "PruneNet": [
            "resnet50_v1d_0.11",
            "resnet18_v1b_0.89",
            "resnet50_v1d_0.37",
            "resnet50_v1d_0.48",
            "resnet50_v1d_0.86",
            "resnet101_v1d_0.73",
            "resnet101_v1d_0.76",
        ],
        "Base ResNet": ["resnet18_v1b", "resnet34_v1b", "resnet50_v1d", "resnet101_v1d"],
        "MobileNet": ["mobilenet0.25", "mobilenet0.5", "mobilenet0.75", "mobilenet1.0"],
        "MobileNetV2": ["mobilenetv2_0.25", "mobilenetv2_0.5", "mobilenetv2_0.75", "mobilenetv2_1.0"],
    }


def test_only_some_are_timed(networks):
    assert list(figure1.to_measure(networks, ["vgg11", "mobilenet0.5"]).name) == ["mobilenet0.5", "vgg11"]
    with pytest.raises(UserError, match="'mobilenet0.6' is not in the published data; nearest: mobilenet0"):
        figure1.to_measure(networks, ["mobilenet0.6"])


@pytest.mark.parametrize(
    "name, family",
    [
        ("mobilenet0.25", "mobilenet"),
        ("mobilenetv2_0.25", "mobilenetv2"),
        ("resnet50_v1d_0.11", "resnet"),
        ("inceptionv3", "inceptionv3"),
        ("alexnet", "alexnet"),
        ("se_resnext50_32x4d", "se_resnext"),
        ("vgg11_bn", "vgg"),
    ],
)
def test_family(name, family):
    assert figure1.family(name) == family


def test_published_data_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="gluoncv_fig1_throughput_v100.csv: cannot be read"):
        figure1.published(tmp_path)


# ---- measuring -----------------------------------------------------------------------------------------------------


def test_a_kill_costs_one_network(networks, tmp_path):
    some, path, timed = networks.head(4), tmp_path / "measured.json", []

    def clock(name):
        if len(timed) == 2:
            raise KeyboardInterrupt
        timed.append(name)
        return {key: value for key, value in row(name, 10.0).items() if key != "name"}

    with pytest.raises(KeyboardInterrupt):
        figure1.measure(some, path, SETUP, HARDWARE, clock)
    assert [each["name"] for each in figure1.read(path)["networks"]] == timed == list(some.name[:2])

    again, heard = [], []
    later = {**HARDWARE, "date": "2026-02-02"}
    result = figure1.measure(
        some,
        path,
        SETUP,
        later,
        lambda name: again.append(name) or row(name, 20.0),
        lambda done, name: heard.append((round(done, 3), name)),
    )
    assert again == list(some.name[2:]) and result == figure1.read(path)
    assert [each["images_per_second"] for each in result["networks"]] == [10.0, 10.0, 20.0, 20.0]
    a, b = 1 / some.images_per_second[2:]
    assert heard == [(0.0, again[0]), (round(a / (a + b), 3), again[1]), (1.0, "")]
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_left_to_time(networks, tmp_path):
    path = tmp_path / "measured.json"
    first = figure1.measure(networks.head(1), path, SETUP, HARDWARE, lambda name: row(name, 10.0))
    assert figure1.measure(networks.head(1), path, SETUP, HARDWARE, None) == first


@pytest.mark.parametrize(
    "setup, hardware, said",
    [
        ({**SETUP, "threads": 1}, HARDWARE, ("2 threads", "1 thread,")),
        ({**SETUP, "batch": 1}, HARDWARE, ("batch 64", "batch 1,")),
        (SETUP, {**HARDWARE, "cpu": "Other CPU"}, ("Test_CPU 100%", "Other CPU")),
    ],
)
def test_another_setup_is_refused(networks, tmp_path, setup, hardware, said):
    path = tmp_path / "measured.json"
    figure1.measure(networks.head(1), path, SETUP, HARDWARE, lambda name: row(name, 10.0))
    before = path.read_bytes()
    with pytest.raises(UserError, match="; give another folder with --out") as error:
        figure1.measure(networks.head(2), path, setup, hardware, lambda name: row(name, 10.0))
    held, here = str(error.value).split(", but this is ")
    assert said[0] in held and said[1] in here and path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"setup": {}, "input": [3], "networks": []}'])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "measured.json").write_text(text)
    with pytest.raises(UserError, match="measured.json: .*; remove it or give another"):
        figure1.read(tmp_path / "measured.json")


def test_a_row_that_lacks_a_key_is_refused(tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(
        json.dumps({"setup": SETUP, "input": [3, 224, 224], "hardware": HARDWARE, "networks": [{"name": "vgg11"}]})
    )
    with pytest.raises(UserError, match="measured.json: networks.0.latency_s is missing"):
        figure1.read(path)


# ---- comparing -----------------------------------------------------------------------------------------------------


def test_ranking():
    table = figure1.ranking(FOUR).set_index("Network")
    assert list(table["V100 rank"]) == [1, 2, 3, 4] and list(table["CPU rank"]) == [2, 1, 4, 3]
    assert table.loc["pruned", "V100 ratio to base"] == 3.0 and table.loc["pruned", "CPU ratio to base"] == 3.0
    assert table["CPU ratio to base"].notna().sum() == 1 and table.loc["big", "GMACs"] == 2.5


def test_agreement():
    assert figure1.agreement(FOUR) == pytest.approx((4 - 2) / 6)  # six pairs, two of them the other way round
    assert figure1.agreement(FOUR.iloc[[1, 3]]) == 1.0
    assert pd.isna(figure1.agreement(FOUR.iloc[:1]))


def test_flips():
    table = figure1.flips(FOUR)
    assert list(table.itertuples(index=False, name=None)) == [
        ("big", "base", pytest.approx(500 / 300), 2.0),
        ("small", "pruned", pytest.approx(1000 / 900), 1.2),
    ]
    near = both(("a", "MobileNet", None, 60.0, 104.0, 50.0), ("b", "MobileNet", None, 60.0, 100.0, 90.0))
    assert figure1.flips(near).empty  # 4 % apart on the first device: no order to be changed


def test_domination():
    assert figure1.dominators(FOUR, "pruned", "v100") == ["small"]  # as accurate, and faster
    assert figure1.dominators(FOUR, "pruned", "cpu") == []
    table = figure1.dominated(FOUR)
    assert table.values.tolist() == [["pruned", "base", 60.0, "small", "none"]]
    alone = figure1.dominated(FOUR[~FOUR.kind.isin(figures.MOBILENETS)])
    assert alone.values.tolist() == [["pruned", "base", 60.0, None, None]]  # nothing to compare with is not "none"


def test_pareto():
    points = pd.DataFrame(
        {"name": list("abcde"), "top1": [50.0, 60.0, 60.0, 70.0, 65.0], "images_per_second": [9.0, 8.0, 7.0, 1.0, 1.0]}
    )
    assert list(figures.pareto(points).name) == ["d", "b", "a"]


# ---- files ---------------------------------------------------------------------------------------------------------


def measured(networks, speed):
    some = figure1.to_measure(networks)
    rows = [row(name, speed(there), name == "mobilenet0.5") for name, there in zip(some.name, some.images_per_second)]
    return {"setup": SETUP, "input": [3, 224, 224], "hardware": HARDWARE, "networks": rows}


@pytest.mark.slow
def test_the_same_data_give_the_same_files(networks, tmp_path):
    held = measured(networks, lambda there: there / 50)
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = (figure1.write(networks, held, tmp_path / name) for name in "ab")
    assert [path.name for path in first] == [
        "figure1_v100.png",
        "figure1_v100.svg",
        "figure1_cpu.png",
        "figure1_cpu.svg",
        *(f"{name}{suffix}" for name in ("ranking", "flips", "dominated") for suffix in (".md", ".tex", ".csv")),
    ]
    for one, other in zip(first, second):
        assert one.read_bytes() == other.read_bytes() and one.stat().st_size > 0
    text = (tmp_path / "a" / "ranking.md").read_text(encoding="utf-8")
    assert "Test_CPU 100%" in text and "NOISY: mobilenet0.5." in text and "widest spread" in text and "12 %" in text
    assert "1.000 over all 19 networks, 1.000 over the 10 PruneNets and bases" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| resnet50_v1d_0.11 "))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "resnet50_v1d_0.11",
        "63.21",
        "2.500",
        "9,521",
        "190.4",
        "8.53",
        "8.53",
        "3",
        "3",
    ]
    assert r"Test\_CPU 100\%" in (tmp_path / "a" / "ranking.tex").read_text(encoding="utf-8")
    assert (tmp_path / "a" / "flips.md").read_text(encoding="utf-8").startswith("0 of 171 pairs")


@pytest.mark.slow
def test_the_other_way_round_every_pair_flips(networks, tmp_path):
    held = measured(networks, lambda there: 1e5 / there)
    figure1.write(networks, held, tmp_path)
    n_flips = len(pd.read_csv(tmp_path / "flips.csv"))
    assert (tmp_path / "flips.md").read_text(encoding="utf-8").startswith(f"{n_flips} of 171 pairs") and n_flips > 150
    assert "-1.000 over all 19" in (tmp_path / "ranking.md").read_text(encoding="utf-8")
    # By hand: mobilenet0.5, 0.75 and 1.0 are each slower there and more accurate than one PruneNet.
    assert "0 of 7 on the V100, 3 of 7 on the CPU" in (tmp_path / "dominated.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_one_network_is_enough_to_write(networks, tmp_path):
    held = {**measured(networks, lambda there: there), "networks": [row("resnet50_v1d_0.11", 10.0)]}
    figure1.write(networks, held, tmp_path)
    line = (tmp_path / "ranking.csv").read_text(encoding="utf-8").splitlines()[1]
    assert line == "resnet50_v1d_0.11,63.214,2.5,9521.4,10,-,-,1,1"
    assert (tmp_path / "dominated.csv").read_text(encoding="utf-8").splitlines()[1].endswith(",63.214,-,-")
    assert "tau between both throughputs: - over all 1" in (tmp_path / "ranking.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_name_in_the_figure_can_be_read(networks):
    ax = figures.figure1(networks, figures.KINDS, "title", "subtitle").axes[0]
    names = {text.get_text().strip(): text.get_window_extent() for text in ax.texts if text.get_text() != "subtitle"}
    assert set(names) == set(figure1.to_measure(networks).name)
    for one, other in itertools.combinations(names, 2):
        assert not names[one].overlaps(names[other]), (one, other)
    points = ax.transData.transform(networks[["images_per_second", "top1"]].to_numpy())
    assert not [name for name, box in names.items() if box.count_contains(points)], "a name covers no network"


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "figure1.py"), *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_the_script_draws_the_published_figure(tmp_path):
    done = run("--out", str(tmp_path / "new"))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["figure1_v100.png", "figure1_v100.svg"]


@pytest.mark.slow
def test_the_script_times_what_is_not_timed_yet(tmp_path):
    done = run("--measure", "--only", "mobilenet0.25", "--batch", "1", "--repeats", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (row,) = figure1.read(tmp_path / "measured.json")["networks"]
    assert row["name"] == "mobilenet0.25" and row["macs"] == pytest.approx(41e6, rel=0.02)
    assert "tau between both throughputs: - over all 1" in done.stdout


@pytest.mark.slow
def test_an_option_that_would_do_nothing_is_refused(tmp_path):
    done = run("--only", "vgg11", "--repeats", "3", "--out", str(tmp_path))
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr == "error: --repeats, --only: only matters while networks are timed; add --measure\n"
