"""Searches of options: what they find, what they keep through kills, whom they share it with, and what they refuse."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from finished import finished
from postgres import server
from test_experiment import TINY, epochs, finish, numbers, script
from test_prune import Noise, net  # noqa: F401

from gcp.cost.analytic import macs
from gcp.cost.base import Budget
from gcp.errors import UserError, without_passwords
from gcp.experiment import config, estimate
from gcp.experiment import record as records
from gcp.experiment import run as experiment_run
from gcp.methods import gcp as gcp_method
from gcp.methods.base import METHODS, Problem
from gcp.report import figures, frame
from gcp.report import search as search_report
from gcp.search import tuning
from gcp.search.options import Range, Search
from gcp.train import optimisers
from gcp.train.optimisers import DivergedError

SPACE = {"x": Range(low=0.01, high=10.0, log=True), "kind": Range(choices=("plain", "shifted"))}
PASSWORD = "corr%40ct-horse"  # with an escaped character
URL = f"postgresql://me:{PASSWORD}@127.0.0.1:1/db"
MINIMAL = {
    "scale": "smoke",
    "model": {"name": "cifar_resnet20_v1"},
    "data": {"name": "digits", "input": [3, 8, 8], "batch": 16, "n_train": 500},
    "train": {"epochs": 1},
    "finetune": {"epochs": 2},
    "prune": {"method": "gcp", "target": 0.5},
}


def tuner(folder, trials=4, space=SPACE, first=None, seed=0, said=None, **search):
    folder.mkdir(exist_ok=True)
    search = Search(trials=trials, parameters=space, **search)
    log = lambda event, **values: None if said is None else said.append(values)  # noqa: E731
    return tuning.Tuner(search, dict(space), first or {}, seed, folder, log)


def loss(values):
    """Least, 0, at x = 0.3 of the plain kind."""
    return float((np.log10(values["x"]) - np.log10(0.3)) ** 2 + (values["kind"] == "shifted"))


def attempt(trial):
    (trial.path / "network").touch()
    trial.images["recover"] = 10 * (trial.number + 1)
    return trial.values, loss(trial.values)


def trials(found):
    return [{key: row[key] for key in ("trial", "state", "value", "images", "values")} for row in found[2]["trials"]]


# ---- what is found --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_best_of_a_known_function_is_found_from_the_configured_values_on(tmp_path):
    values, trial, study = tuner(tmp_path, 16, first={"x": 5.0, "kind": "shifted"}).best(attempt)
    rows = study["trials"]
    assert rows[0]["values"] == {"x": 5.0, "kind": "shifted"} and len(rows) == 16
    assert values == trial.values == rows[study["best"]]["values"] == min(rows, key=lambda row: row["value"])["values"]
    assert values["kind"] == "plain" and 0.15 < values["x"] < 0.6
    assert [row["images"] for row in rows] == [10 * n for n in range(1, 17)]
    assert [path.name for path in (tmp_path / "search-run").iterdir()] == [f"trial-{trial.number:04d}"]


def drawn(n, space=SPACE, seed=0, first=None, **search):
    """The values of n trials, of which each came to its number."""
    done, search = [], Search(trials=n, parameters=space, **search)
    distributions = {key: tuning.distribution(tried) for key, tried in space.items()}
    for number in range(n):
        values = tuning.suggest(search, space, first or {}, seed, done)
        done.append(optuna.create_trial(params=values, distributions=distributions, value=float(number)))
    return [trial.params for trial in done]


def test_values_outside_of_the_ranges_are_no_first_trial():
    assert drawn(1, first={"x": 5.0, "kind": "plain"}) == [{"x": 5.0, "kind": "plain"}]
    assert all(0.01 <= values["x"] <= 10 for values in drawn(3, first={"x": 50.0, "kind": "plain"}))


def test_a_grid_is_every_combination_in_turn():
    space = {"a": Range(choices=(3, 1)), "b": Range(choices=(True, None))}
    combinations = [tuple(values.values()) for values in drawn(4, space, sampler="grid", first={"a": 1, "b": None})]
    assert combinations == [(3, True), (3, None), (1, True), (1, None)]


def test_whole_numbers_stay_whole():
    values = drawn(5, {"n": Range(low=1, high=9), "x": Range(low=1.0, high=9.0)}, sampler="random")
    assert {(type(of["n"]), type(of["x"])) for of in values} == {(int, float)}
    assert Range(low=1, high=9).holds(2) and not Range(low=1, high=9).holds(1.5) and Range(low=1.0, high=9).holds(1.5)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_seed_decides(sampler):
    assert drawn(6, sampler=sampler) == drawn(6, sampler=sampler) != drawn(6, sampler=sampler, seed=1)
    assert len({values["x"] for values in drawn(6, sampler=sampler)}) == 6


@pytest.mark.slow
def test_failed_trials_are_recorded_and_do_not_end_a_search(tmp_path):
    errors = {1: optimisers.DivergedError("the loss is nan"), 3: MemoryError("no room")}

    def failing(trial):
        trial.images["recover"] = 7
        if trial.number in errors:
            raise errors[trial.number]
        return None, float(trial.number)

    study = tuner(tmp_path, 5).best(failing)[2]
    assert [row["state"] for row in study["trials"]] == ["complete", "failed", "complete", "failed", "complete"]
    assert [row["why"] for row in study["trials"]][1::2] == ["the loss is nan", "not enough memory: no room"]
    assert study["best"] == 0 and [row["images"] for row in study["trials"]] == [7] * 5

    def hopeless(trial):
        raise optimisers.DivergedError("the loss is inf")

    with pytest.raises(
        UserError, match="all 3 trials of run failed, the first with: the loss is inf; give other ranges"
    ):
        tuner(tmp_path / "hopeless", 3).best(hopeless)
    with pytest.raises(UserError, match="disk"):
        tuner(tmp_path / "user", 3).best(lambda trial: (_ for _ in ()).throw(UserError("the disk is full")))


@pytest.mark.slow
def test_a_pruner_ends_what_is_worse_than_the_median(tmp_path):
    steps = []

    def reporting(trial):
        for step in range(1, 4 if trial.report else 0):  # it is not asked again when the best is read back
            steps.append((trial.number, step))
            trial.images["recover"] += 1
            trial.report(step, float(trial.number))
        return None, float(trial.number)

    study = tuner(tmp_path, 3, pruner="median").best(reporting)[2]
    assert [row["state"] for row in study["trials"]] == ["complete", "pruned", "pruned"]
    assert [row["images"] for row in study["trials"]] == [3, 1, 1] and steps[3:5] == [(1, 1), (2, 1)]


# ---- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["computed", "running", "told"])
def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path, moment, monkeypatch):
    whole, ran = tuner(tmp_path / "whole", 7).best(attempt), []

    class Killed(BaseException):
        pass

    def counted(trial):
        ran.append(trial.number)
        if moment == "running" and ran == [0, 1, 2, 3]:
            raise Killed
        return attempt(trial)

    tell = tuning._Study.tell

    def killed(study, *args):
        if moment == "told":
            tell(study, *args)
        if ran == [0, 1, 2, 3] and moment != "running":
            raise Killed
        if moment != "told":
            tell(study, *args)

    monkeypatch.setattr(tuning._Study, "tell", killed)
    (tmp_path / "again").mkdir()
    folder = tmp_path / "again" / "whole"  # a study knows its run's name
    with pytest.raises(Killed):
        tuner(folder, 7).best(counted)
    again = tuner(folder, 7).best(counted)
    assert trials(again) == trials(whole) and again[:1] == whole[:1]
    last = [again[1].number]  # is read back
    assert ran == [0, 1, 2, 3, *range(4 if moment == "told" else 3, 7), *last]


# ---- GCP ------------------------------------------------------------------------------------------------------------


def outcome_of(net, folder, space, trials=3, first=None, **options):  # noqa: F811
    cost, data = macs(net), SimpleNamespace(train=Noise(16), validation=Noise(20))
    search = space and tuner(folder, trials, space, first)
    problem = Problem(net, Budget(cost, cost(net.widths), 0.5), data, seed=0, batch=8, tuner=search)
    options = gcp_method.GcpOptions(**{"score": "relative", "iterations": 2, **options})
    log = SimpleNamespace(path=folder, log=lambda event, **values: None)
    return METHODS["gcp"](problem, options, log), options.n_images(16, 8)


@pytest.mark.slow
def test_trials_of_an_iteration_start_from_the_best_of_the_one_before(net, tmp_path):  # noqa: F811
    space = {"lam": Range(low=0.01, high=3.0, log=True), "recover_lr": Range(low=1e-3, high=1e-1, log=True)}
    outcome, alone = outcome_of(net, tmp_path, space, 3, first={"lam": 0.1, "recover_lr": 0.01})
    assert [len(study["trials"]) for study in outcome.searches] == [3, 3]
    best = [study["trials"][study["best"]] for study in outcome.searches]
    assert [row["loss_recovered"] for row in outcome.history] == [row["value"] for row in best]
    # The first iteration's best, run with its values alone, is the same network.
    values = best[0]["values"]
    plain, _ = outcome_of(
        net, tmp_path / "plain", None, lam=(values["lam"],), recover_lr=values["recover_lr"], iterations=1
    )
    assert plain.history[0]["loss_recovered"] != outcome.history[0]["loss_recovered"], "to the whole target at once"
    tmp_path.joinpath("again").mkdir()
    again, _ = outcome_of(net, tmp_path / "again" / tmp_path.name, space, 3, first={"lam": 0.1, "recover_lr": 0.01})
    assert again.history == outcome.history and again.images == outcome.images
    # Images of all trials count, and are known before.
    assert sum(outcome.images.values()) == 3 * alone == sum(row["images"] for row in outcome.history)
    assert outcome.images["search"] == 2 * alone and outcome.images["recover"] == 2 * 16


@pytest.mark.slow
def test_a_trial_that_ends_early_counts_what_it_took(net, tmp_path, monkeypatch):  # noqa: F811
    def as_asked(study, step, value):
        return study._claimed.number == 1

    monkeypatch.setattr(tuning._Study, "should_end", as_asked)
    cost, data = macs(net), SimpleNamespace(train=Noise(16), validation=Noise(20))
    search = tuner(tmp_path, 2, {"lam": Range(low=0.01, high=3.0)}, pruner="median")
    problem = Problem(net, Budget(cost, cost(net.widths), 0.5), data, seed=0, batch=8, tuner=search)
    options = gcp_method.GcpOptions(score="relative", iterations=1, recover_epochs=3.0)
    log = SimpleNamespace(path=tmp_path, log=lambda event, **values: None)
    (study,) = METHODS["gcp"](problem, options, log).searches
    assert [row["state"] for row in study["trials"]] == ["complete", "pruned"]
    assert [row["images"] for row in study["trials"]] == [16 + 3 * 16, 16 + 16], "one of three epochs of recovering"


# ---- configurations -------------------------------------------------------------------------------------------------


def loaded(tmp_path, *overrides, **search):
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "search": search}))
    return config.load(path, overrides)


LAM = {"prune.gcp.lam": {"low": 0.01, "high": 1.0, "log": True}}
MISTAKES = [
    ({"prune.gcp.lamb": {"low": 1, "high": 2}}, {}, "did you mean prune.gcp.lam?"),
    ({"train.lr": {"low": 1, "high": 2}}, {"scope": "run"}, "did you mean prune.gcp.lr?"),
    ({"prune.gcp.lam": {"low": 1.0, "high": 0.1}}, {}, "the range from 1.0 to 0.1 is empty"),
    ({"prune.gcp.lam": {"low": 1.0, "high": 1.0}}, {}, "the range from 1.0 to 1.0 is empty"),
    ({"prune.gcp.lam": {"low": -1, "high": 1}}, {}, "-1 does not fit: lam.0: -1 should be greater than or equal to 0"),
    ({"prune.gcp.momentum": {"low": 0.5, "high": 1}}, {}, "1 does not fit: momentum: 1 should be less than 1"),
    ({"prune.gcp.lam": {"low": 0, "high": 1, "log": True}}, {}, "low: 0 has no logarithm"),
    ({"prune.gcp.lam": {"low": 0.1}}, {}, "give either low and high"),
    ({"prune.gcp.lam": {"low": 0.1, "high": 1, "choices": [1]}}, {}, "give either low and high"),
    ({"prune.gcp.lam": {"low": 0.1, "hihg": 1}}, {}, "search.parameters.prune.gcp.lam.hihg: no such key"),
    ({"prune.gcp.score": {"choices": ["taylor", "tailor"]}}, {}, "'tailor' does not fit"),
    ({"prune.gcp.score": {"choices": ["taylor", "taylor"]}}, {}, "contains a duplicate value"),
    ({"prune.gcp.lam": {"choices": [1, 1.0]}}, {}, "contains a duplicate value"),
    ({"prune.gcp.score": {"low": 1, "high": 2}}, {}, "a range is only for numbers; give choices"),
    ({"finetune.epochs": {"low": 1, "high": 2.5}}, {"scope": "run"}, "should be whole numbers"),
    ({"prune.gcp.iterations": {"low": 1, "high": 2}}, {}, "not a key that trials of method: gcp and scope: iteration"),
    (LAM, {"sampler": "grid"}, "has a range; give choices"),
    ({"prune.gcp.score": {"choices": ["taylor"]}}, {"sampler": "grid", "trials": 2}, "1 combinations of the grid"),
    ({}, {"trials": 2}, "trials without parameters"),
    (LAM, {"pruner": "median"}, "they have only one; raise prune.gcp.recover_epochs, or set search.pruner to none"),
    (LAM, {"storage": f"oracle://me:{PASSWORD}@host/db"}, "storage should be a URL such as postgresql://"),
    (LAM, {"storage": f"postgresql://me:{PASSWORD} 1@host/db"}, "storage contains a space"),
    (LAM, {"storage": f"me:{PASSWORD}"}, "storage should be a URL such as postgresql://"),
]  # fmt: skip


@pytest.mark.parametrize("parameters, search, part", MISTAKES)
def test_a_mistake_is_one_line_without_a_password(tmp_path, parameters, search, part):
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, **{"trials": 4, "parameters": parameters, **search})
    assert part in str(caught.value) and "\n" not in str(caught.value) and caught.value.key.startswith("config.")
    assert str(tmp_path / "tuned.yaml") in str(caught.value) and PASSWORD not in str(caught.value)


def test_iterations_are_of_methods_that_have_some(tmp_path):
    with pytest.raises(UserError, match="search.scope: iteration, but method: uniform has no iterations to search"):
        loaded(tmp_path, "prune.method=uniform", trials=2, parameters=LAM)
    with pytest.raises(UserError, match="prune.gcp.lam: .* is already a search"):
        loaded(tmp_path, "prune.gcp.lam=[0.1, 1.0]", trials=2, parameters=LAM)


def test_a_penalty_is_listed_once(tmp_path):
    with pytest.raises(UserError, match="lam: .* contains a duplicate value"):
        loaded(tmp_path, "prune.gcp.lam=[0.1, 0.1]")


def test_a_pruner_has_something_to_compare(tmp_path):
    how = {"trials": 2, "pruner": "median"}
    assert loaded(tmp_path, "prune.gcp.recover_epochs=1.5", parameters=LAM, **how).search.pruner == "median"
    epochs = {"prune.gcp.recover_epochs": {"low": 1.0, "high": 3.0}}
    assert loaded(tmp_path, parameters=epochs, **how).search.pruner == "median"
    assert loaded(tmp_path, "finetune.epochs=2", parameters=LAM, scope="run", **how).search.pruner == "median"
    with pytest.raises(UserError, match="raise finetune.epochs, or set search.pruner to none"):
        loaded(tmp_path, "finetune.epochs=1", parameters=LAM, scope="run", **how)


def test_parameters_can_be_set_on_the_command_line(tmp_path):
    sets = ("search.trials=3", "search.parameters.prune.gcp.lam={low: 1, high: 2}")
    assert loaded(tmp_path, *sets, parameters=LAM).search_space() == {"prune.gcp.lam": Range(low=1.0, high=2.0)}
    assert {type(end) for end in loaded(tmp_path, *sets).search_space()["prune.gcp.lam"].ends} == {float}


def test_where_trials_are_kept_decides_no_number_and_no_password_is_written(tmp_path):
    cfg, plain = (loaded(tmp_path, trials=3, parameters=LAM, storage=storage) for storage in (URL, None))
    assert cfg.fingerprint() == plain.fingerprint() and cfg.search.storage == URL
    for text in (cfg.model_dump_json(), repr(cfg), str(cfg.search), yaml.safe_dump(cfg.model_dump(mode="json"))):
        assert PASSWORD not in text
    assert cfg.model_dump(mode="json")["search"]["storage"] == "postgresql://me:***@127.0.0.1:1/db"
    # No search is none, whatever its parameters.
    without = [loaded(tmp_path, "search.trials=0", parameters=of) for of in ({}, LAM)]
    assert without[0].fingerprint() == without[1].fingerprint() != cfg.fingerprint()
    assert cfg.dense_fingerprint() == without[0].dense_fingerprint()


@pytest.mark.parametrize(
    "text, hidden",
    [
        ("x postgresql://me:a@b/c@host/db y", "x postgresql://me:***@host/db y"),
        ("postgresql://me@host:a@b@host/db", "postgresql://me@host:***@host/db"),
        ("mysql://host/db?user=me&password=a&x=1", "mysql://host/db?user=me&password=***&x=1"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("http://host:80/a", "http://host:80/a"),
    ],
)
def test_passwords_of_urls_are_hidden(text, hidden):
    assert without_passwords(text) == hidden and str(UserError(text)) == hidden


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    cfg = loaded(tmp_path, f"output={tmp_path}", trials=3, parameters=LAM, storage=URL)
    monkeypatch.setattr(experiment_run, "dense_network", lambda *_: pytest.fail("trained"))
    with pytest.raises(
        UserError, match=r"search.storage: .*postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/db cannot be used"
    ):
        experiment_run.run(cfg)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tuned.yaml"]
    with records.open_run(cfg) as folder:  # as it is written by a run that is not refused
        text = (folder.path / "config.yaml").read_text()
    assert "127.0.0.1:1/db" in text and PASSWORD not in text and "corr@ct" not in text


@pytest.mark.slow
def test_a_file_of_another_configuration_is_refused(tmp_path):
    tuner(tmp_path / "one", 2).best(attempt)
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / tuning.FILE).rename(tmp_path / "two" / tuning.FILE)
    with pytest.raises(UserError, match="holds a search of another configuration, 'one, run'; remove that file"):
        tuner(tmp_path / "two", 2).best(attempt)
    tuner(tmp_path / "one", 2).best(attempt)
    with pytest.raises(UserError, match="holds a search of another configuration, 'one, run'"):
        tuner(tmp_path / "one", 3).best(attempt)
    (tmp_path / "one" / tuning.FILE).write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(UserError, match="trials.db cannot be used: file is not a database; remove that file"):
        tuner(tmp_path / "one", 2).best(attempt)


def test_a_full_disk_does_not_cost_the_finished_trials(tmp_path):
    """The message does not say to remove the file of trials, and they are still in it."""

    def full(trial):
        if trial.number == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, unlimited[1]))  # bytes that any file may have
        return attempt(trial)

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UserError) as caught:
            tuner(tmp_path, 3, sampler="random").best(full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "free some space" in str(caught.value) and "finished trials are kept" in str(caught.value)
    assert "remove" not in str(caught.value)
    with contextlib.closing(sqlite3.connect(tmp_path / tuning.FILE)) as file:
        assert file.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone() == (1,)


def test_images_of_trials_are_known_before(tmp_path):
    def row(*overrides, **search):
        cfg = loaded(tmp_path, *overrides, **search)
        return estimate.forecast([cfg])[0]

    one, searched = row(), row(trials=5, parameters=LAM)
    assert searched.images_prune == 5 * one.images_prune and searched.images_finetune == one.images_finetune
    runs = row(trials=5, parameters=LAM, scope="run")
    assert runs.images_prune == 5 * one.images_prune + 4 * one.images_finetune
    longer = row(trials=5, parameters={"prune.gcp.recover_epochs": {"low": 0, "high": 2}})
    assert longer.images_prune == 5 * row("prune.gcp.recover_epochs=2.0").images_prune


# ---- reports ---------------------------------------------------------------------------------------------------------


def searched(run, values):
    """A run whose trials came to these losses at x = 1, 2, ..., by x alone; None: it failed."""
    space = {"x": {"low": 1.0, "high": 9.0}, "kind": {"choices": ["a", "b"]}}
    rows = [
        {
            "trial": n,
            "state": "failed" if value is None else "complete",
            "value": value,
            "images": 100,
            "values": {"x": n + 1.0, "kind": "ab"[n * (n + 1) // 2 % 2]},
        }
        for n, value in enumerate(values)
    ]
    best = min((row for row in rows if row["value"] is not None), key=lambda row: row["value"])["trial"]
    study = {"name": "iteration 1", "best": best, "parameters": space, "trials": rows}
    facts = run.record.model_dump()
    facts["config"]["search"] = {"trials": len(values), "scope": "iteration", "parameters": space}
    facts |= {"searches": [study], "fingerprint": f"{run.record.seed:012x}"}
    return run._replace(record=records.Record.model_validate(facts))


def test_searches_of_two_networks_are_told_apart(tmp_path):
    runs = [searched(finished(seed=0, model=f"a$x^{{$b{k}"), [0.9 - k / 2, 0.3 + k / 2]) for k in (0, 1)]
    runs = [
        run._replace(record=run.record.model_copy(update={"fingerprint": f"{k:012x}"})) for k, run in enumerate(runs)
    ]
    table = frame.frame(runs)
    trials = search_report.trials_of(runs, table)
    found = search_report.history(trials)
    assert list(found.Model) == ["a$x^{$b0", "a$x^{$b1"] and list(found.Trials) == [2, 2]
    assert list(found["Best loss"]) == [0.3, 0.4] and list(found.Target) == ["5 % of the MACs"] * 2
    assert len(search_report.importances(runs, table)) == 4
    assert len(figures.save(figures.search_history(trials), tmp_path / "history")) == 2  # dollars are no formulas


def test_a_trial_that_ended_early_is_in_the_figure():
    trial = {"setting": ("d", "m", "paper", ()), "objective": "macs", "target": 0.5, "label": "x", "seed": 0}
    losses = [(1, "complete", 0.5), (2, "pruned", None), (3, "failed", None), (4, "complete", 0.3)]
    rows = [{**trial, "study": "run", "trial": n, "state": state, "value": loss} for n, state, loss in losses]
    figure = figures.search_history(pd.DataFrame(rows).astype({"value": float}))
    [ax] = figure.axes
    [early] = [line for line in ax.lines if line.get_marker() == "v"]
    figure.draw_without_rendering()
    [[x, y]] = early.get_transform().transform(early.get_xydata())
    assert list(early.get_xdata()) == [2] and ax.get_window_extent().contains(x, y)


@pytest.mark.parametrize(
    "ending, images", [("diverged", {"recover": 1000, "diverged": 150}), ("ended", {"recover": 1000, "fine-tune": 100})]
)
def test_images_of_a_trial_that_does_not_end_count_once(ending, images, monkeypatch, tmp_path):
    """One that pruned with 1,000 images, and was last heard of at step 10 of its fine-tuning, of ten images each."""
    trial = SimpleNamespace(images=Counter(), values={}, report=lambda *_: None, path=None)

    def small_networks(cfg, data, dense, budget, folder, report, seen):
        seen({"recover": 1000})
        report(10, 0.5)
        error = DivergedError("the loss is nan") if ending == "diverged" else KeyboardInterrupt()
        error.steps, error.images = 15, 0
        raise error

    monkeypatch.setattr(experiment_run, "small_networks", small_networks)
    once = SimpleNamespace(best=lambda attempt: attempt(trial))
    monkeypatch.setattr(experiment_run, "tuner", lambda cfg, folder: once)
    cfg = SimpleNamespace(data=SimpleNamespace(batch=10), with_values=lambda values: None)
    with pytest.raises((DivergedError, KeyboardInterrupt)):
        experiment_run.searched(cfg, None, None, None, SimpleNamespace(path=tmp_path))
    assert dict(trial.images) == images


@pytest.mark.slow
def test_the_report_shows_how_searches_went_and_what_they_were_worth(tmp_path):
    losses = [0.9, None, 0.5, 0.7, 0.8, 0.85, 0.6, 0.55]
    runs = [searched(finished(seed=seed, top1=0.91 + 0.01 * seed), losses) for seed in (0, 1)]
    runs += [finished(seed=seed, top1=0.90) for seed in (0, 1)]
    table = frame.frame(runs)
    trials = search_report.trials_of(runs, table)
    assert len(trials) == 16 and set(trials.label) == {"GCP-f, searched"}
    assert set(table.label) == {"Dense", "GCP-f", "GCP-f, searched"}
    first = search_report.history(trials).iloc[0]
    assert (first["Trials"], first["Failed"], first["First loss"], first["Best loss"]) == (8, 1, 0.9, 0.5)
    assert first["Best trial"] == 3 and first["Best values"] == "x=3, kind=b"
    mattered = search_report.importances(runs, table).set_index("Parameter")["Importance %"]
    assert mattered["x"] > 2 * mattered["kind"] and mattered.sum() == pytest.approx(100)
    (worth,) = search_report.worth(table).to_dict("records")
    assert worth["Top-1 difference (points)"] == pytest.approx(1.5) and worth["Seeds"] == 2
    assert worth["Top-1 difference (points) sd"] == pytest.approx(2**-0.5) and worth["Equal images"] == "yes"
    paths = search_report.write(runs, table, tmp_path)
    assert {path.name for path in paths} == {
        *(
            f"{name}.{end}"
            for name in ("searches", "search_importance", "search_worth")
            for end in ("md", "tex", "csv")
        ),
        "search_history.png",
        "search_history.svg",
    }
    assert search_report.write(runs[2:], frame.frame(runs[2:]), tmp_path / "none") == []
    alone = runs[:1]
    search_report.write(alone, frame.frame(alone), tmp_path)
    assert "No run without a search" in (tmp_path / "search_worth.md").read_text()


def test_importance_of_too_few_trials_is_not_told():
    assert search_report.importance(searched(finished(), [0.9, 0.5, None, None]).record.searches[0]) == {}
    assert search_report.importance(searched(finished(), [0.5] * 6).record.searches[0]) == {}


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"best": 1}, "trial 1, which should be the best, is not a complete one"),
        ({"best": 9}, "trial 9, which should be the best"),
        ({"trials": [{"trial": 0, "state": "complete", "value": 1.0, "images": 1, "values": {}}]}, "values of trial 0"),
        (
            {
                "trials": [
                    {"trial": 0, "state": "complete", "value": None, "images": 1, "values": {"x": 1.0, "kind": "a"}}
                ]
            },
            "trial 0 is complete, but has no loss",
        ),
    ],
)
def test_a_damaged_study_is_named(tmp_path, changes, part):
    run = searched(finished(), [0.9, None, 0.5])
    content = run.record.model_dump(mode="json")
    content["searches"][0].update(changes)
    path = tmp_path / "run" / "record.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=part) as damaged:
        records.load_records(tmp_path)
    assert str(damaged.value).startswith(f"{path}: searches.0: ")


def test_values_outside_of_the_ranges_say_nothing_about_importance():
    (study,) = searched(finished(), [0.9, 0.5, 0.7, 0.6]).record.searches
    study.trials[0].values["x"] = 99.0
    assert search_report.importance(study) == {}


# ---- whole runs, and several processes ------------------------------------------------------------------------------

SEARCHES = {
    "iteration": {"trials": 3, "parameters": LAM},
    "run": {
        "trials": 3,
        "scope": "run",
        "pruner": "median",
        "parameters": {**LAM, "finetune.lr": {"choices": [0.05, 0.2]}},
    },
}


def tiny(folder, scope):
    values = yaml.safe_load(TINY)
    values |= {"train": {"epochs": 2, "lr": 0.05}, "finetune": {"epochs": 2, "lr": 0.05}, "search": SEARCHES[scope]}
    values["prune"] = {"method": "gcp", "target": 0.4, "round_to": 4, "gcp": {"iterations": 2, "score": "paper"}}
    path = folder / "tuned.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("scope", SEARCHES)
def test_a_search_killed_at_any_moment_ends_with_the_same_record(tmp_path, scope):
    path = tiny(tmp_path, scope)
    code, _, err = finish(script("run.py", path, "--untimed", "--set", f"output={tmp_path / 'whole'}"))
    assert code == 0 and "trial 3 of 3" in err and "left" in err, err
    whole = json.loads(next(tmp_path.glob("whole/tuned-*/record.json")).read_text())
    again = ("run.py", path, "--untimed", "--set", f"output={tmp_path / 'again'}")
    first = "search-iteration-1" if scope == "iteration" else "search-run"
    for moment in (
        f"{first}/trial-0000/gcp-1-regularise.json",
        f"{first}/trial-0001",
        f"{first}/trial-0002/gcp-1-recover.json",
        "search-iteration-2/trial-0001" if scope == "iteration" else "pruned.json",
    ):
        process = script(*again)
        while not list(tmp_path.glob(f"again/tuned-*/{moment}")) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        finish(process)
    assert finish(script(*again))[0] == 0
    resumed = json.loads(next(tmp_path.glob("again/tuned-*/record.json")).read_text())
    assert numbers(resumed) == numbers(whole)
    assert sum(whole["images"].values()) == whole["stages"]["pruned"]["images"]
    logs = [sorted(epochs(next(tmp_path.glob(f"{where}/tuned-*/log.jsonl")))) for where in ("whole", "again")]
    assert logs[0] == logs[1], "no epoch is left out, and none is trained twice with other numbers"
    lines = map(json.loads, next(tmp_path.glob("again/tuned-*/log.jsonl")).read_text().splitlines())
    ran = [line["trial"] for line in lines if line.get("search") in ("iteration 1", "run")]
    assert ran == [0, 1, 2]


@pytest.mark.slow
def test_the_test_images_choose_nothing(tmp_path, monkeypatch):
    asked, evaluate = [], experiment_run.TASKS["classification"].evaluate

    def seen(self, network, split):
        asked.append(split)
        return evaluate(network, split)

    monkeypatch.setattr(type(experiment_run.TASKS["classification"]), "evaluate", seen)
    folder = tmp_path / "runs"
    cfg = config.load(tiny(tmp_path, "run"), [f"output={folder}"])
    data = experiment_run.load_data(cfg.data, cfg.seed)
    record = experiment_run.run(cfg)
    sizes = [len(split) for split in asked]
    assert len(data.test) != len(data.validation)
    assert sizes[-3:] == [len(data.test)] * 3 and len(data.test) not in sizes[:-3]
    assert record.searches[0].name == "run" and len(record.searches[0].trials) == 3
    assert record.images["search"] == sum(
        t.images for t in record.searches[0].trials if t.trial != record.searches[0].best
    )


WORKER = """
import json, sys, time
from pathlib import Path
from gcp.search import tuning
from test_search import tuner, attempt
folder, url, log, seconds = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
tuning.POLL_S = 0.1
def slowly(trial):
    with log.open("a") as file:
        file.write(f"{folder.parent.name} {trial.number}\\n")
    time.sleep(seconds)
    return attempt(trial)
found = tuner(folder, 8, sampler="random", storage=url).best(slowly)
print(json.dumps(found[2]))
"""


def begun(log):
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


@contextlib.contextmanager
def worker(folder, url, log, seconds):
    folder.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", WORKER, str(folder), url, str(log), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as process:
        try:
            yield process
        finally:
            process.kill()


def found_by(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)["trials"]


def wait_for(n_begun, log, process):
    """Until so many trials have begun; the process must not end before."""
    while len(begun(log)) < n_begun:
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_share_one_search(tmp_path):
    with server() as url:
        log = tmp_path / "log"
        with worker(tmp_path / "a/run", url, log, 0.5) as one, worker(tmp_path / "b/run", url, log, 0.5) as two:
            rows, others = found_by(one), found_by(two)
    assert rows == others and [row["trial"] for row in rows] == list(range(8))
    assert {row["state"] for row in rows} == {"complete"}
    # Each trial once, and the best once more by each, which reads it back or makes its network again.
    best = str(min(rows, key=lambda row: row["value"])["trial"])
    assert sorted(number for _, number in begun(log)) == sorted([*map(str, range(8)), best, best])
    assert {name for name, _ in begun(log)} == {"a", "b"}


@pytest.mark.slow
def test_a_trial_that_ends_while_another_process_looks_for_one_is_not_run_again(tmp_path, monkeypatch):
    """One process has seen it running; the other ends it and gives its lock back; only then the first tries that."""
    with tuner(tmp_path / "a", 3)._study("run", 0) as one, tuner(tmp_path / "a", 3)._study("run", 0) as two:
        assert one.claim()["trial"] == 0
        take, ended = tuning._Study._take, []

        def late(self, trial):
            if self is two and trial.number == 0 and not ended:
                ended.append(one.tell("complete", 0.5, 10, None))
            return take(self, trial)

        monkeypatch.setattr(tuning._Study, "_take", late)
        assert two.claim()["trial"] == 1 and len(ended) == 1
        assert [row["trial"] for row in two.rows()] == [0]


@pytest.mark.slow
def test_the_trial_of_a_process_that_was_killed_is_run_by_another(tmp_path):
    with server() as url:
        log = tmp_path / "log"
        with worker(tmp_path / "lost/run", url, log, 600) as lost:
            wait_for(1, log, lost)
            with worker(tmp_path / "other/run", url, log, 0.01) as other:
                wait_for(8, log, other)  # all but the one that the first process has
                time.sleep(0.5)
                assert other.poll() is None and len(begun(log)) == 8
                lost.kill()
                rows = found_by(other)
    assert [row["state"] for row in rows] == ["complete"] * 8
    best = str(min(rows, key=lambda row: row["value"])["trial"])
    assert begun(log) == [["lost", "0"], *(["other", n] for n in [*map(str, range(1, 8)), "0", best])]


@pytest.mark.slow
def test_a_run_with_its_trials_on_a_server_is_the_run_with_a_file(tmp_path):
    with server(password="s3cret-w0rd") as url:
        path, found, said = tiny(tmp_path, "iteration"), [], ""
        for where, more in (("file", []), ("server", [f"search.storage={url}"]), ("other", [f"search.storage={url}"])):
            code, out, err = finish(script("run.py", path, "--untimed", "--set", f"output={tmp_path / where}", *more))
            assert code == 0, err
            said += out + err
            found.append(json.loads(next(tmp_path.glob(f"{where}/tuned-*/record.json")).read_text()))
        # The last has run no trial: it made the networks of the best again.
        assert numbers(found[0]) == numbers(found[1]) == numbers(found[2])
        logs = [next(tmp_path.glob(f"{where}/tuned-*/log.jsonl")).read_text() for where in ("server", "other")]
        assert [text.count('"event": "trial"') for text in logs] == [6, 0]
        code, _, err = finish(
            script(
                "run.py", path, "--set", f"output={tmp_path / 'x'}", f"search.storage={url.replace('s3cret', 'wrong')}"
            )
        )
        assert code == 2 and "password authentication failed" in err and len(err.strip().splitlines()) == 1
        written = "".join(
            p.read_text()
            for p in tmp_path.rglob("*")
            if p.suffix in (".json", ".jsonl", ".yaml") and "data" not in p.parts
        )
        assert "w0rd" not in said + err + written and "postgresql://postgres:***@" in written
        assert records.load_records(tmp_path / "server")[0].record.searches
