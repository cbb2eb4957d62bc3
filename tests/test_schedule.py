"""The forecast of a sweep on many GPUs: schedules that one can check by hand, and numbers that are their sources'."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcp import storage
from gcp.errors import UserError
from gcp.experiment.schedule import Parameters, Row, Run, plan, read, simulate

REPO = Path(__file__).resolve().parents[1]
PARAMETERS = Parameters(storage.read_yaml(REPO / "configs" / "scale.yaml"), REPO)


def test_the_longest_comes_first_and_who_waits_begins_after_what_it_waits_for():
    found = simulate([Run("a", 2), Run("b", 3), Run("c", 4), Run("d", 1, after="b")], 2)
    # c 0-4 and b 0-3; then a 3-5 and d 4-5.
    assert found.begins == {"c": 0, "b": 0, "a": 3, "d": 4} and (found.seconds, found.busy_s) == (5, 10)
    assert simulate([Run("a", 2), Run("b", 2, after="a")], 8).seconds == 4
    with pytest.raises(ValueError, match="b waits for z"):
        simulate([Run("a", 1), Run("b", 1, after="z")], 1)


@pytest.mark.slow
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 8))
def test_a_schedule_is_within_graham_s_bound(seconds, n_slots):
    found = simulate([Run(str(n), s) for n, s in enumerate(seconds)], n_slots)
    least = max(max(seconds), sum(seconds) / n_slots)
    assert least <= found.seconds <= sum(seconds) / n_slots + (1 - 1 / n_slots) * max(seconds) + 1e-9


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda values: values.pop("seeds"), "seeds is missing"),
        (lambda values: values["training"]["resnet18_v1b"].pop("gpus"), "training.resnet18_v1b.gpus is missing"),
        (lambda values: values["training"]["resnet18_v1b"].update(gpus=3), "scaling.speedup: has no entry for 3 GPUs"),
        (lambda values: values.update(cores_per_gpu=4), "cores_per_gpu: 4 should be"),
        (lambda values: values["scaling"]["speedup"].update({8: -1.0}), "scaling.speedup.8: -1.0 should be greater"),
        (lambda values: values.update(other=4), "other: no such key"),
    ],
)
def test_parameters_that_lack_something_are_named(tmp_path, change, part):
    values = storage.read_yaml(REPO / "configs" / "scale.yaml")
    change(values)
    path = tmp_path / "scale.yaml"
    path.write_text(storage.yaml_text(values))
    with pytest.raises(UserError, match=re.escape(f"{path}: {part}")):
        read(path)


def test_a_network_without_a_speed_is_named():
    with pytest.raises(UserError, match="training: has no speed of vgg11, the network of t/x"):
        PARAMETERS.gpu_speed(Row("t/x", "vgg11", False, 0, 0, 1, 1.0, 1.0), 8, 1.0)


def test_a_dense_network_trains_as_fast_as_its_log_says():
    row = Row("t/x", "resnet50_v1d", False, 0, 0, 4982 * 1000, 1.0, 1.0)
    assert PARAMETERS.gpu_speed(row, 8, 1.0) == pytest.approx(4982)
    assert PARAMETERS.seconds(row, 8)["fine-tuning"] == pytest.approx(1000)
    # Between two published networks a step takes what lies between theirs; below the smallest, what that one takes.
    points = sorted(PARAMETERS._pruned["resnet50_v1d"])
    assert points[0][1] < PARAMETERS.time_kept("resnet50_v1d", (points[0][0] + points[1][0]) / 2) < points[1][1]
    assert PARAMETERS.time_kept("resnet50_v1d", 0.001) == points[0][1] == pytest.approx(1 / 8.53)
    small = row._replace(kept_after=0.001)
    assert PARAMETERS.seconds(small, 1)["fine-tuning"] == pytest.approx(4982 * 1000 / PARAMETERS.loader_speed(1))


def test_the_checked_in_forecast_is_that_of_the_checked_in_parameters():
    with open(REPO / "results" / "forecast" / "scale.csv") as file:
        lines = list(csv.DictReader(file))
    assert {line["n_gpus"] for line in lines} >= {"8", "64"} and all(float(line["in_use"]) <= 1 for line in lines)
    text = (REPO / "results" / "forecast" / "scale.md").read_text()
    for entry in PARAMETERS.values["training"].values():
        assert f"images_per_s {entry['images_per_s']}" in text and entry["source"] in text
    row = Row("t/x", "resnet50_v1d", False, 0, 0, 10**8, 1.0, 1.0)
    few, many = (plan(PARAMETERS, [row], n, 1) for n in (8, 64))
    assert few.days == many.days > few.longest_days, "three runs do not fill eight GPUs"
