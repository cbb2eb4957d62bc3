"""Searches of options: how they went, which options mattered, and what they gained at equally many images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gcp.experiment.record import Finished, SearchStudy
from gcp.report import figures, tables
from gcp.report.frame import Measure, aggregate, cost_label, in_order, unique
from gcp.search.options import Range

EQUAL_IMAGES = 0.02  # totals further apart than this (relative) are not an equal comparison
STUDY = figures.STUDY
PLACE = STUDY[: STUDY.index("seed")]
FEWEST = 4  # finished trials needed to tell which options mattered
WORTH = (
    Measure("Top-1 difference (points)", "difference", "mean +- sd"),
    Measure("Images total", "images_total", "mean", 0),
    Measure("Images total, other", "images_total_other", "mean", 0),
)


def write(runs: Iterable[Finished], table: pd.DataFrame, output: Path) -> list[Path]:
    """Write searches, search_importance and search_worth as tables, and search_history as a figure; return the paths.

    Writes nothing if there was no search. `table` is the frame of the runs.
    """
    trials = trials_of(runs, table)
    if trials.empty:
        return []
    about = f"{tables.whose(table)}. {' '.join(tables.scale_sentences(table.scale))}"
    captions = {
        "searches": f"Searches of options, {about} Losses are those on the validation images: of the first trial, "
        "which has the configuration's own values where they are within the ranges, and of the best.",
        "search_importance": f"Which options mattered, {about} Parts of the variance of the validation loss over "
        "trials that each option explains by itself and with others (fANOVA), mean over seeds.",
        "search_worth": f"What searches were worth, {about} Top-1 on {table.images.iloc[0]} images of searched runs "
        "minus that of runs without a search at the same target and seed. Equal images says NO where any seed's totals "
        f"differ by more than {100 * EQUAL_IMAGES:g} %: images of all trials count.",
    }
    found = {"searches": history(trials), "search_importance": importances(runs, table), "search_worth": worth(table)}
    if found["search_worth"].empty:
        captions["search_worth"] = "No run without a search shares data, model, method, target and seed with one."
    digits = {"Trials": 0, "Failed": 0, "Ended early": 0, "First loss": 4, "Best loss": 4, "Best trial": 0, "Seed": 0}
    digits |= {"Importance %": 0, **tables.digits_of(WORTH)}
    paths = []
    for name, of in found.items():
        paths += tables.save(of, digits, captions[name], output / name, f"tab:{name}")
    return paths + figures.save(figures.search_history(trials), output / "search_history")


def trials_of(runs: Iterable[Finished], table: pd.DataFrame) -> pd.DataFrame:
    """A row per trial, by run and study, in the order of the tables; `trial` counts from 1."""
    rows = []
    for place, run in _placed(runs, table):
        for study in run.record.searches:
            for trial in study.trials:
                facts = trial.model_dump(include={"state", "value", "values"})
                at = {**place, "seed": run.record.seed, "study": study.name, "trial": trial.trial + 1}
                rows.append({**at, "is_best": trial.trial == study.best, **facts})
    frame = pd.DataFrame(rows, columns=[*STUDY, *"trial is_best state value values".split()])
    return frame.astype({"value": float})


def _placed(runs: Iterable[Finished], table: pd.DataFrame) -> list[tuple[dict[str, Any], Finished]]:
    """The searched runs in the order of tables, each with its values of `PLACE`."""
    named = in_order(table.drop_duplicates("fingerprint", keep="last")).set_index("fingerprint")
    known = {run.record.fingerprint: run for run in unique(runs)}
    return [(row[PLACE].to_dict(), known[key]) for key, row in named.iterrows() if known[key].record.searches]


def _titles(place: Mapping[str, Any]) -> dict[str, Any]:
    """The first columns of a row of these tables."""
    data, model, *_ = place["setting"]
    target = f"{100 * place['target']:g} % of the {cost_label(place['objective'])}"
    return {"Data": data, "Model": model, "Method": place["label"], "Target": target}


def history(trials: pd.DataFrame) -> pd.DataFrame:
    """A row per study: how many trials there were, failed and ended early, the first and best loss, the best values."""
    rows = []
    for at, own in trials.groupby(STUDY, sort=False):
        best, place = own[own.is_best].iloc[0], dict(zip(STUDY, at))
        rows.append(
            {
                **_titles(place),
                "Seed": place["seed"],
                "Search": place["study"],
                "Trials": len(own),
                "Failed": (own.state == "failed").sum(),
                "Ended early": (own.state == "pruned").sum(),
                "First loss": own.value.iloc[0],
                "Best loss": best.value,
                "Best trial": best.trial,
                "Best values": ", ".join(f"{key}={_said(value)}" for key, value in best["values"].items()),
            }
        )
    return pd.DataFrame(rows)


def importances(runs: Iterable[Finished], table: pd.DataFrame) -> pd.DataFrame:
    """A row per study and parameter: its range, and its mean importance over seeds (NaN with too few trials)."""
    rows = []
    for place, run in _placed(runs, table):
        for study in run.record.searches:
            found = importance(study)
            for key, tried in study.parameters.items():
                at = {**_titles(place), "Search": study.name}
                rows.append({**at, "Parameter": key, "From": _range(tried), "Importance %": found.get(key)})
    cells = ["Data", "Model", "Method", "Target", "Search", "Parameter", "From"]
    frame = pd.DataFrame(rows).astype({"Importance %": float})
    return frame.groupby(cells, sort=False, dropna=False)["Importance %"].mean().reset_index()


def importance(study: SearchStudy) -> dict[str, float]:
    """The percentage of the variance of the loss that each parameter explains; empty if there are too few trials."""
    import optuna

    from gcp.search.tuning import distribution

    done = [
        trial
        for trial in study.trials
        if trial.state == "complete" and all(of.holds(trial.values[key]) for key, of in study.parameters.items())
    ]
    if len(done) < FEWEST or len({trial.value for trial in done}) == 1:
        return {}
    space = {key: distribution(tried) for key, tried in study.parameters.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = optuna.create_study()
    for trial in done:
        trials.add_trial(optuna.create_trial(params=trial.values, distributions=space, value=trial.value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return {key: 100 * of for key, of in optuna.importance.get_param_importances(trials, evaluator=evaluator).items()}


def worth(table: pd.DataFrame) -> pd.DataFrame:
    """Searched runs minus the same method's runs without a search, at equal setting, objective, target and seed."""
    cells = ["setting", "objective", "target"]
    pruned = in_order(table[table.method != "Dense"])
    keys = [*cells, "method", "seed"]
    values = [*keys, "label", "top1", "images_total"]
    pairs = pruned[pruned.searched][values].merge(pruned[~pruned.searched][values], on=keys, suffixes=("", "_other"))
    if pairs.empty:
        return pd.DataFrame()
    apart = (pairs.images_total / pairs.images_total_other - 1).abs()
    pairs = pairs.assign(difference=pairs.top1 - pairs.top1_other, apart=apart)
    cells += ["label", "label_other"]
    found = aggregate(pairs, cells, WORTH)
    furthest = pairs.groupby(cells, sort=False).apart.max()
    places = [_titles(place) for place in found[PLACE].to_dict("records")]
    return (
        pd.DataFrame(places)
        .assign(Other=found.label_other)
        .join(found[[*(c for c in found if c not in cells)]])
        .assign(**{"Equal images": ["yes" if most <= EQUAL_IMAGES else "NO" for most in furthest]})
    )


def _range(tried: Range) -> str:
    if tried.choices:
        return ", ".join(map(_said, tried.choices))
    return f"{_said(tried.low)} to {_said(tried.high)}" + (", log" if tried.log else "")


def _said(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "null" if value is None else str(value)
