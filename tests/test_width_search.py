"""Width search: estimates against planted gains, files, OWS, AOWS and AutoSlim, whole and killed, and bad input."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from finished import finished
from networks import random_network
from pydantic import ValidationError
from test_experiment import TINY, finish, script
from test_prune import Noise

from gcp import command
from gcp.cost import latency
from gcp.cost.analytic import macs
from gcp.cost.base import Budget, Cost, Term
from gcp.errors import UserError
from gcp.experiment import config, width_search
from gcp.methods import autoslim as autoslim_method
from gcp.methods import width_search as method
from gcp.methods.base import METHODS, Problem
from gcp.report import width_search as report
from gcp.search import statistics
from gcp.train import optimisers
from gcp.train.slimmable import Drawn

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "search.py"
LEVELS = {"a": [2, 4, 6, 8], "b": [1, 2, 3], "c": [5]}
TRUE = {"a": [0.0, 0.5, 0.7, 0.8], "b": [0.0, 0.3, 0.4], "c": [0.0]}


def drawn(rows, noise=0.0):
    """Differences of the planted gains: what each row lacks of the widest."""
    top, rng = sum(of[-1] for of in TRUE.values()), np.random.default_rng(1)
    lost = [top - sum(of[k] for of, k in zip(TRUE.values(), row)) for row in rows]
    return Drawn(np.array(rows), np.array(lost) + noise * rng.normal(size=len(rows)))


# ---- estimates and files


def test_least_squares_finds_planted_gains_and_marginal_means_their_order():
    every = list(itertools.product(range(4), range(3), range(1)))
    found = statistics.gains_of(drawn(4 * every), LEVELS, "least_squares", 1.0)
    for name, of in TRUE.items():
        np.testing.assert_allclose(found[name], of, atol=2e-2)
    means = statistics.gains_of(drawn(every), LEVELS, "means", 1.0)
    for name, of in TRUE.items():  # of all combinations, a third each of what a width is worth beyond the mean
        np.testing.assert_allclose(3 * (means[name] - means[name][0]), of, atol=1e-12)


def test_least_squares_is_not_misled_by_the_other_groups_widths():
    """Few draws in which wide layers come together, and noise: rank correlation with the truth."""
    rng = np.random.default_rng(0)
    levels = {f"g{i}": list(range(1, 9)) for i in range(8)}
    true = {name: np.cumsum(np.sort(rng.exponential(0.05, 8))[::-1]) for name in levels}
    rows = np.clip(rng.integers(0, 8, (150, 8)) + rng.integers(-3, 4, (150, 1)), 0, 7)
    lost = -np.array([sum(true[n][k] for n, k in zip(levels, row)) for row in rows]) + rng.normal(0, 0.05, 150)
    errors = {}
    for name in statistics.ESTIMATORS:
        found = statistics.gains_of(Drawn(rows, lost), levels, name, 1.0)
        errors[name] = np.corrcoef(*(np.concatenate([g[n] - g[n].mean() for n in levels]) for g in (found, true)))[0, 1]
    assert errors["least_squares"] > 0.97 > errors["means"]


def test_progress_of_the_training_is_no_worth_of_widths(monkeypatch):
    """Widths narrow while losses fall for another reason: by one constant for all steps narrow widths would be best."""
    rng, n = np.random.default_rng(0), 800
    levels = {f"g{i}": list(range(1, 9)) for i in range(4)}
    true = {name: np.cumsum(np.sort(rng.exponential(0.1, 8))[::-1]) for name in levels}
    centre = np.linspace(6, 2, n)[:, None]
    rows = np.clip(np.round(centre + rng.uniform(-2.5, 2.5, (n, 4))), 0, 7).astype(int)
    lost = np.linspace(6, 0, n) - sum(true[g][rows[:, k]] for k, g in enumerate(levels)) + rng.normal(0, 0.05, n)
    found = {}
    for periods in (0, statistics.PERIODS):
        monkeypatch.setattr(statistics, "PERIODS", periods)
        found[periods] = statistics.gains_of(Drawn(rows, lost), levels, "least_squares", 1.0)
    for name in levels:
        assert np.ptp(found[0][name]) < 0.1 * np.ptp(true[name])
        assert np.ptp(found[statistics.PERIODS][name]) > 0.4 * np.ptp(true[name])


def test_only_the_last_part_of_the_steps_counts():
    early, late = drawn([(0, 0, 0)] * 6), drawn(list(itertools.product(range(4), range(3), range(1))))
    both = Drawn(np.vstack([early.levels, late.levels]), np.append(100 + early.differences, late.differences))
    some, alone = (statistics.gains_of(of, LEVELS, "means", w) for of, w in ((both, 12 / 18), (late, 1.0)))
    assert all(np.array_equal(some[name], alone[name]) for name in LEVELS)


def test_a_width_that_was_never_drawn_lies_between_its_neighbours():
    found = statistics.gains_of(drawn([(0, 0, 0), (3, 0, 0), (0, 2, 0), (3, 2, 0)]), LEVELS, "means", 1.0)
    assert found["a"][1] == pytest.approx((2 * found["a"][0] + found["a"][3]) / 3)
    rising = statistics.gains_of(drawn([(0, 0, 0), (3, 0, 0), (0, 2, 0), (3, 2, 0)]), LEVELS, "least_squares", 1.0)
    assert all((np.diff(of) >= 0).all() for of in rising.values())


def header(**other):
    values = {
        "network": "cifar_resnet20_v1",
        "input": (3, 8, 8),
        "classes": 10,
        "data": "digits",
        "seed": 0,
        "batch": 8,
    }
    return statistics.Header(**{**values, "sizes": {"a": 8, "b": 3, "c": 5}, "levels": LEVELS, **other})


def test_files_hold_every_step(tmp_path):
    held = Drawn(np.array([[1, 0, 0], [1, 0, 0], [2, 2, 0]]), np.array([0.25, 0.75, -0.5]))
    statistics.write(tmp_path / "s", header(), held)
    found = statistics.read(tmp_path / "s")
    assert found.header == header() and [line.n for line in found.lines] == [2, 1]
    assert np.array_equal(found.drawn.levels, held.levels)
    assert found.drawn.differences.tolist() == [0.5, 0.5, -0.5]


@pytest.mark.parametrize(
    "line, key",
    [
        ('{"n": 1, "levels": [0, 3, 0], "difference": 0.1}', "statistics.levels"),
        ('{"n": 1, "levels": [0, 0], "difference": 0.1}', "statistics.levels"),
        ("", "statistics.empty"),
        ('{"n": 1, "levels": [0, 0, 0]}', "file.schema"),
        ('{"n": 1, "levels": [0, 0, 0], "difference": NaN}', "file.json"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, line, key):
    path = tmp_path / "s"
    path.write_text(header().model_dump_json() + "\n" + line + "\n")
    with pytest.raises(UserError) as error:
        statistics.read(path)
    assert str(path) in str(error.value), key


def test_a_header_contradicts_itself():
    with pytest.raises(ValidationError):
        header(levels={"a": [1, 2]})
    with pytest.raises(ValidationError):
        header(levels={**LEVELS, "a": [2, 2]})


# ---- methods


@pytest.fixture(scope="module")
def net():
    return random_network("cifar_resnet20_v1", (3, 8, 8), 4)


def attempt(net, folder, name, target=0.4, **options):
    cost = macs(net)
    data = SimpleNamespace(train=Noise(40), validation=Noise(24), name="noise")
    problem = Problem(net, Budget(cost, cost(net.widths), target, 2), data, 0, 8, statistics_images=16)
    given = METHODS.options[name](**{"levels": 4, "epochs": 4.0, "lr": 0.01, **options})
    folder.mkdir(exist_ok=True, parents=True)
    run = SimpleNamespace(path=folder, shared=folder.parent / "shared", log=lambda event, **values: None)
    return METHODS[name](problem, given, run), given, problem


SLOW_GREEDY = pytest.param("autoslim", marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ows", "aows", SLOW_GREEDY])
def test_the_widths_are_of_the_grid_and_within_the_budget(net, tmp_path, name):
    found, options, problem = attempt(net, tmp_path / name, name)
    small, budget, last = found.network, problem.budget, found.history[-1]
    levels = options.grid(net.widths, 2)
    assert all(small.widths[g] in levels[g] for g in levels) and last["widths"] == small.widths
    assert budget.cost(small.widths) == macs(small)(small.widths) <= 0.4 * budget.original
    assert last["cost_kept"] == budget.cost(small.widths) / budget.original
    n = options.n_images(40, 8, 16)
    assert n == 20 * 8 * 2.5 + 16 and found.images["slimmable"] + found.images["statistics"] == n


@pytest.mark.slow
def test_one_slimmable_network_serves_every_bound_and_autoslim(net, tmp_path, monkeypatch):
    attempt(net, tmp_path / "a", "ows")
    monkeypatch.setattr(optimisers.SGD, "step", lambda *_: pytest.fail("it is trained again"))
    (other, _, _), (greedy, _, _) = attempt(net, tmp_path / "b", "ows", 0.3), attempt(net, tmp_path / "c", "autoslim")
    assert other.history[-1]["cost_kept"] <= 0.3 and greedy.history[-1]["steps"] > 0
    again, _, _ = attempt(net, tmp_path / "d", "autoslim", 0.2)
    assert again.history[-1]["steps"] > greedy.history[-1]["steps"]
    # What has been judged is judged for every bound, and its images count each time.
    monkeypatch.setattr(autoslim_method._Greedy, "_loss", lambda *_: pytest.fail("it is judged again"))
    third, _, _ = attempt(net, tmp_path / "e", "autoslim")
    assert (third.network.widths, third.history, third.images) == (greedy.network.widths, greedy.history, greedy.images)


@pytest.mark.slow
def test_without_its_statistics_a_slimmable_network_is_trained_again(net, tmp_path):
    first, *_ = attempt(net, tmp_path / "a", "ows")
    path = next(tmp_path.rglob("*.statistics.jsonl"))
    text = path.read_text()
    path.unlink()
    again, *_ = attempt(net, tmp_path / "a", "ows")
    assert path.read_text() == text and again.network.widths == first.network.widths


@pytest.mark.slow
def test_aows_gives_up_widths_as_it_cools(net, tmp_path):
    """By planted gains that every drawn width tells: all alike at first, then few, those around the best widths."""
    _, options, problem = attempt(net, tmp_path / "a", "aows", coldest=1e-4, warmup=0.3)
    narrowing, rng = method.Narrowing(problem, options), np.random.default_rng(0)
    levels = options.grid(net.widths, 2)
    rows = rng.integers(0, 4, (400, len(levels)))
    held = Drawn(rows, -np.sqrt(np.array(list(levels.values()))[np.arange(len(levels)), rows]).sum(1))
    assert narrowing(narrowing.first - 1, held) is None
    alive = [
        {g: int((of >= method.ALIVE).sum()) for g, of in narrowing(step, held).items()}
        for step in range(narrowing.first, 20, narrowing.renew)
    ]
    totals = [sum(of.values()) for of in alive]
    assert totals[0] > 3.5 * len(levels) and totals[-1] <= 1.5 * len(levels) and totals == sorted(totals, reverse=True)
    best = narrowing._solver.solve(options.gains(held, levels, 20), 0.4 * problem.budget.original)
    last = narrowing(19, held)
    assert sum(last[g][levels[g].index(width)] > 0.2 for g, width in best.widths.items()) >= len(levels) - 1


@pytest.mark.slow
def test_what_aows_gave_up_stays_given_up(net, tmp_path):
    """Drawn by its own policy, many times: the last widths say nothing of others, which must not come back for that."""
    _, options, problem = attempt(net, tmp_path / "a", "aows", hottest=1e-3, coldest=1e-3, warmup=0.25)
    narrowing, rng = method.Narrowing(problem, options), np.random.default_rng(0)
    levels = options.grid(net.widths, 2)
    narrowing._n_steps, narrowing.first = 1600, 400
    worth = [np.sqrt(of) for of in levels.values()]
    rows, alive = [], []
    for step in range(0, 1600, 20):
        held = np.array(rows, np.int64).reshape(-1, len(levels))
        told = -sum(of[held[:, k]] for k, of in enumerate(worth)) + rng.normal(0, 0.1, len(held))
        p = narrowing(step, Drawn(held, told))
        alive.append(sum(int((p[g] >= method.ALIVE).sum()) if p else len(of) for g, of in levels.items()))
        draw = [rng.choice(len(of), 20, p=None if p is None else p[g]) for g, of in levels.items()]
        rows += np.array(draw).T.tolist()
    assert alive[-1] == min(alive) or alive[-1] <= min(alive) + 2
    assert alive[-1] < 2 * len(levels)


@pytest.mark.slow
def test_a_record_keeps_states_of_the_narrowing(net, tmp_path):
    found, options, _ = attempt(net, tmp_path / "a", "aows")
    *rows, _ = found.history
    assert rows[0]["alive"] == {g: len(of) for g, of in options.grid(net.widths, 2).items()}
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert rows[0]["temperature"] is None and rows[-1]["temperature"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aows", SLOW_GREEDY])
def test_a_killed_search_ends_with_the_same_widths(net, tmp_path, monkeypatch, name):
    whole, _, _ = attempt(net, tmp_path / "one" / name, name)
    update, loss, count = optimisers.SGD.step, autoslim_method._Greedy._loss, [0]

    def dying(of, fatal):
        def called(*args):
            count[0] += 1
            if count[0] == fatal:
                raise KeyboardInterrupt
            return of(*args)

        return called

    monkeypatch.setattr(optimisers.SGD, "step", dying(update, 13))
    monkeypatch.setattr(autoslim_method._Greedy, "_loss", dying(loss, 60))
    n_killed = 0
    while n_killed < 5:
        try:
            killed, _, _ = attempt(net, tmp_path / "two" / name, name)
            break
        except KeyboardInterrupt:
            n_killed += 1
    assert n_killed == (2 if name == "autoslim" else 1)
    assert killed.network.widths == whole.network.widths and killed.history == whole.history
    assert killed.images == whole.images
    assert all(np.array_equal(whole.network.arrays[k], killed.network.arrays[k]) for k in whole.network.arrays)


@pytest.mark.slow
def test_autoslim_narrows_what_costs_least_per_saved_cost(net, tmp_path, monkeypatch):
    """Against the same search written out, with planted losses: down to the limit, and up again as far as it allows."""
    worth = {g: 1.0 + k for k, g in enumerate(net.widths)}
    monkeypatch.setattr(
        autoslim_method._Greedy, "_loss", lambda self, widths: -sum(worth[g] * np.sqrt(n) for g, n in widths.items())
    )
    found, options, problem = attempt(net, tmp_path / "a", "autoslim")
    levels, cost = options.grid(net.widths, 2), problem.budget.cost
    widths, order = {g: of[-1] for g, of in levels.items()}, []
    while cost(widths) > 0.4 * problem.budget.original:
        best = []
        for g, of in levels.items():
            if widths[g] > of[0]:
                other = {**widths, g: of[of.index(widths[g]) - 1]}
                rise = worth[g] * (np.sqrt(widths[g]) - np.sqrt(other[g]))
                best.append((rise / (cost(widths) - cost(other)), g, other))
        _, g, widths = min(best, key=lambda row: row[:2])
        order.append(g)
    assert found.history[-1]["steps"] == len(order)
    limit, narrowed = 0.4 * problem.budget.original, cost(widths)
    while True:
        best = []
        for g, of in levels.items():
            if widths[g] < of[-1]:
                other = {**widths, g: of[of.index(widths[g]) + 1]}
                if cost(other) <= limit:
                    fall = worth[g] * (np.sqrt(other[g]) - np.sqrt(widths[g]))
                    best.append((fall / (cost(other) - cost(widths)), g, other))
        if not best:
            break
        widths = max(best, key=lambda row: row[:2])[2]
    assert found.network.widths == widths and narrowed < cost(widths) <= limit
    [path] = tmp_path.rglob("*.judged-*.jsonl")
    judged = [tuple(json.loads(line)["widths"]) for line in path.read_text().splitlines()]
    assert len(judged) == len(set(judged)) == found.images["judging"] / len(problem.data.validation)


def test_autoslim_gets_past_a_maximum_that_groups_share(net, tmp_path, monkeypatch):
    """The cost is the wider of two groups: narrowing either alone saves nothing, and a half needs both."""
    first, second = [g.name for g in net.groups if g.size == 32][:2]
    cost = Cost([Term((name,), float) for name in (first, second)], "max")
    data = SimpleNamespace(train=Noise(40), validation=Noise(24), name="noise")
    problem = Problem(net, Budget(cost, 32.0, 0.5, 2), data, 0, 8)
    monkeypatch.setattr(autoslim_method._Greedy, "_loss", lambda self, widths: -sum(widths.values()))
    search = autoslim_method._Greedy(problem, METHODS.options["autoslim"](levels=4, epochs=4.0), net, tmp_path / "net")
    found = search.within(16.0)
    assert cost(found) <= 16.0 and found[first] == found[second] > 0


def test_what_cannot_be_searched_is_refused(net):
    cost, options = macs(net), method.OwsOptions()
    with pytest.raises(UserError) as error:
        options.check(net, Budget(cost, cost(net.widths), 0.001, 2))
    lowest = cost({g: of[0] for g, of in options.grid(net.widths, 2).items()}) / cost(net.widths)
    assert error.value.key == "budget.target" and f"{np.ceil(1e4 * lowest) / 1e4:.4f}" in str(error.value)
    options.check(net, Budget(cost, cost(net.widths), lowest, 2))
    with pytest.raises(UserError) as error:
        method.OwsOptions(narrowest=0.9, widest=1.1).grid(net.widths, 64)
    assert error.value.key == "search.grid"
    with pytest.raises(ValidationError):
        method.OwsOptions(narrowest=1.5)
    with pytest.raises(ValidationError):
        method.AowsOptions(coldest=2.0)


# ---- the script


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A configuration, and the statistics of its slimmable network."""
    folder = tmp_path_factory.mktemp("search")
    path = folder / "ows-macs-0.4.yaml"
    path.write_text(
        TINY.replace("prune: {", "prune: {method: ows, target: 0.4, ows: {levels: 5, epochs: 2, lr: 0.02}, ")
        + f"output: {folder / 'out'}\n"
    )
    return path, str(width_search.train(config.load(path)))


def called(capsys, *args):
    """The script in this process: what it takes to start one is not of interest here."""
    code = command.status(runpy.run_path(str(SCRIPT))["run"], [str(arg) for arg in args])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_the_script_trains_once_and_solves_for_any_bound(searched, tmp_path, capsys, monkeypatch):
    path, held = searched
    monkeypatch.setattr(optimisers.SGD, "step", lambda *_: pytest.fail("it is trained again"))
    code, out, err = called(capsys, "train", path)
    assert (code, out.strip()) == (0, held), err
    bounds = ("--bound", "0.4", "params:0.3")
    code, out, err = called(capsys, "solve", held, *bounds, "--out", tmp_path / "w.json")
    assert code == 0, err
    first, second = json.loads((tmp_path / "w.json").read_text())
    assert (first["cost"], second["cost"]) == ("macs", "params") and second["params_kept"] <= 0.3


@pytest.mark.slow
def test_an_experiment_solves_the_same_statistics(searched, tmp_path):
    path, held = searched
    code, _, err = finish(script("search.py", "solve", held, "--bound", "0.4", "--out", tmp_path / "w.json"))
    assert code == 0, err
    code, out, err = finish(script("run.py", path, "--untimed"))
    assert code == 0, err
    [row] = json.loads((tmp_path / "w.json").read_text())
    record = json.loads(next(path.parent.glob("out/ows-*/record.json")).read_text())
    assert record["widths"]["final"] == row["widths"]
    assert json.loads(out[: out.rindex("}") + 1])["macs_kept"] == pytest.approx(row["macs_kept"])


@pytest.mark.slow
def test_the_front_is_written_and_drawn(searched, tmp_path, capsys):
    _, held = searched
    code, out, err = called(capsys, "front", held, "--points", "6", "--out", tmp_path / "front")
    assert code == 0, err
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".csv", ".tex", ".png", ".svg"}
    problem = width_search.WidthProblem.open(held)
    rows = width_search.front(problem, "macs", 6)
    assert len(rows) > 3 and all(a["kept"] < b["kept"] and a["gain"] < b["gain"] for a, b in zip(rows, rows[1:]))


def test_the_report_draws_the_narrowing_of_aows_alone(tmp_path):
    rows = [{"step": 10 * k, "temperature": None, "alive": {"a": 9 - k, "b": 9 - 2 * k}} for k in range(4)]
    runs = [finished(name=name) for name in ("one", "two")]
    history = [*rows, {"cost_kept": 0.4}]
    runs[1] = runs[1]._replace(record=runs[1].record.model_copy(update={"history": history}), path=tmp_path / "of")
    paths = report.write(runs, tmp_path)
    assert [path.name for path in paths] == ["narrowing_of.png", "narrowing_of.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)


@pytest.mark.slow
def test_random_networks_are_trained_once_and_ranked(searched, tmp_path):
    path, _ = searched
    told = []
    for n in (3, 4):
        command = ("search.py", "validate", path, "--n", n, "--macs", "0.5", "--out", tmp_path / "checks")
        code, out, err = finish(script(*command))
        assert code == 0, err
        told.append(err.count("fine-tune"))
    rows = width_search.validate(config.load(path), 4, 0.5, lambda *_: None)
    assert len(rows) == 4 and (rows.macs_kept <= 0.5).all() and (rows.macs_kept > 0.35).all()
    predictors = ["means", "least_squares", "slimmable", "macs_kept", "params_kept"]
    assert [check.label for check in report.checks_of(rows)] == [report.PREDICTORS[name] for name in predictors]
    other = width_search.validate(config.load(path, ["prune.ows.hold=2"]), 4, 0.5, lambda *_: None)
    assert (other.top1 == rows.top1).all() and (other.slimmable != rows.slimmable).any()
    assert len(list(Path(config.load(path).output).rglob("validate/*.params"))) == 4
    twice = width_search.validate(config.load(path), 3, 0.5, lambda *_: None, trainings=2)
    assert (twice["first"] == rows.top1[:3]).all() and (twice.top1 == (twice["first"] + twice.others) / 2).all()
    assert report.checks_of(twice)[-1].label == report.PREDICTORS["first"]
    assert {path.name for path in tmp_path.iterdir()} >= {f"checks.{kind}" for kind in ("md", "csv", "png", "svg")}


def test_two_processes_train_a_random_network_once(tmp_path, monkeypatch):
    """The second one waits for the first, and reads its result."""
    net, trained = random_network("cifar_resnet20_v1", (3, 8, 8), 4), []

    def train(small, *_):
        trained.append(small)
        time.sleep(0.5)
        return small, {"validation_top1": 0.5}

    monkeypatch.setattr(width_search.experiment_run, "train", train)
    how = SimpleNamespace(finetune=None), None, net, tmp_path / "validate" / "macs-0.5-000", 0
    with ThreadPoolExecutor(2) as both:
        found = list(both.map(lambda _: width_search._trained_alone(*how), range(2)))
    assert found == 2 * [{"validation_top1": 0.5}] and len(trained) == 1


@pytest.mark.slow
def test_a_landscape_is_drawn_and_its_minima_counted(tmp_path, capsys):
    how = ("resnet18_v1b", "--input", "3,32,32", "--device", SCRIPT.parents[1] / "configs" / "device.yaml")
    code, out, err = called(capsys, "landscape", *how, "--points", "50", "--out", tmp_path / "l")
    assert code == 0, err
    assert [line.split(":")[0] for line in out.splitlines()[:2]] == ["every width", "multiples of 16"]
    assert {path.name for path in tmp_path.iterdir()} == {"l.png", "l.svg"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, said",
    [
        (["solve", "{held}", "--bound", "0.0001"], "the narrowest widths of the grid need"),
        (["solve", "{held}", "--bound", "3ms"], "needs a latency model"),
        (["solve", "{held}", "--bound", "cheap"], "--bound cheap: should be a fraction"),
        (["solve", "{held}", "--bound", "0.4", "--latency-model", "results/latency/mobilenet1.0-32px-batch64.json"],
         "is for 'mobilenet1.0'"),
        (["solve", "{config}", "--bound", "0.4"], "line 1"),
        (["train", "{config}", "--set", "prune.method=uniform"], "give a configuration with method ows"),
        (["validate", "{config}", "--out", "x", "--quality", "synflow"], "--quality: is for a space of architectures"),
        (["train", "{config}", "--set", "prune.round_to=64"], "every group has only one width"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(searched, capsys, args, said):
    path, held = searched
    code, out, err = called(capsys, *(arg.format(held=held, config=path) for arg in args))
    assert (code, out) == (2, "") and said in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.slow
def test_the_lowest_bound_that_a_message_names_can_be_solved(searched, capsys):
    for cost in ("macs", "params"):
        code, _, err = called(capsys, "solve", searched[1], "--bound", f"{cost}:0.0001")
        least = re.search(r"need ([\d.]+) of", err)[1]
        assert code == 2 and called(capsys, "solve", searched[1], "--bound", f"{cost}:{least}")[0] == 0


@pytest.mark.slow
def test_a_latency_model_of_another_input_size_is_refused(searched, capsys, monkeypatch):
    head = statistics.read(Path(searched[1])).header
    other = SimpleNamespace(network=head.network, sizes=head.sizes, input=(3, 99, 99), classes=head.classes)
    monkeypatch.setattr(latency, "load", lambda path: other)
    code, _, err = called(capsys, "solve", searched[1], "--bound", "0.4", "--latency-model", "m.json")
    assert code == 2 and "is for images of 3x99x99, but the statistics are for" in err


@pytest.mark.slow
def test_networks_that_the_grid_cannot_make_are_refused_before_the_slimmable_network_is_trained(searched, capsys):
    how = ("--macs", "0.001", "--out", "x", "--set", "prune.ows.hold=3")
    code, out, err = called(capsys, "validate", searched[0], *how)
    last = err.strip().splitlines()[-1]  # before it, the bar of networks, which has only begun
    assert (code, out) == (2, "") and "give a higher fraction" in last and "slimmable network" not in err, err
