"""From a frame to Markdown, LaTeX and CSV files; this is the only module that formats digits.

One table row is one method at one target, aggregated over seeds. Missing values print "-".
"""

from __future__ import annotations

import contextlib
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from gcp.cost.base import COSTS
from gcp.cost.latency import Validation
from gcp.errors import UserError
from gcp.report.frame import Measure, aggregate, cost_label, in_order, threads, titles
from gcp.storage import read_json, write_text

MISSING, NOISY = "-", "*"
NOISE = f"{NOISY}: a timing was noisy (its passes differed widely, or others kept the machine busy)."
EQUAL_COST = 0.02  # achieved costs further apart than this (relative) are not an equal comparison
LINE = 120  # characters in a line of a terminal
NAME = 42  # characters of a method's name in the short table
SCALES = {
    "paper": "Paper scale",
    "reduced": "REDUCED scale: less data or training than the paper's, so no reproduction of its numbers",
    "smoke": "SMOKE scale: these runs only show that the code works; their accuracies mean nothing",
}
Digits = Mapping[str, "int | None"]  # title of a numeric column -> decimals; None: six significant digits

CELL = ["setting", "label", "objective", "target"]  # what all seeds of an experiment have in common
MEASURES = (
    Measure("MACs kept %", "macs_kept"),
    Measure("Params kept %", "params_kept"),
    Measure("Top-1 %", "top1", "mean +- sd"),
    Measure("Drop (points)", "drop", "mean +- sd"),
    Measure("Top-5 %", "top5"),
    Measure("Images/s", "images_per_second", "median", 0),
    Measure("Throughput ratio", "throughput_ratio", "median"),
    Measure("Top-1 % before fine-tuning", "pruned_top1"),
    Measure("Images before fine-tuning", "images_before", "mean", 0),
    Measure("Fine-tune epochs", "finetune_epochs", "mean", 0),
    Measure("Images total", "images_total", "mean", 0),
    Measure("Images/s noisy", "noisy", "any"),
    Measure("Throughput ratio noisy", "noisy", "any"),
)
COMPARED = (
    Measure("Top-1 difference (points)", "difference", "mean +- sd"),
    Measure("Cost kept %", "cost"),
    Measure("Cost kept %, other", "cost_other"),
    Measure("Cost difference %", "cost_difference"),
    Measure("Images total", "images_total", "mean", 0),
    Measure("Images total, other", "images_total_other", "mean", 0),
    Measure("Cost kept % noisy", "cost_noisy", "any"),
    Measure("Cost kept %, other noisy", "cost_noisy_other", "any"),
)
SHORT = (
    Measure("MACs %", "macs_kept", "mean", 1),
    Measure("Params %", "params_kept", "mean", 1),
    Measure("Top-1 %", "top1", "mean +- sd"),
    Measure("Speed", "throughput_ratio", "median"),
    Measure("Speed noisy", "noisy", "any"),
    Measure("n_eval", "n_eval"),
)


# ---- writing any table ---------------------------------------------------------------------------------------------


def number(value: float | None, digits: int | None, sign: str = "") -> str:
    """A number with comma separators and `digits` decimals (None: six significant); `MISSING` for None and NaN."""
    if value is None or pd.isna(value):
        return MISSING
    if digits is None:
        return f"{value:.6g}"
    text = f"{value:{sign},.{digits}f}"
    return text.lstrip("-+") if float(text.replace(",", "")) == 0 else text  # no "-0.00"


def digits_of(measures: Iterable[Measure]) -> dict[str, int | None]:
    """Title -> digits, for the columns of the measures and for those that most tables have."""
    return {"Target %": None, "Seeds": 0, **{m.title: m.digits for m in measures}}


def formatted(table: pd.DataFrame, digits: Digits) -> pd.DataFrame:
    """The table as strings; Data and Model are included only if they have several values.

    A deviation ("TITLE sd") and a noise mark ("TITLE noisy") join the cell of TITLE; "TITLE text" replaces it.
    """
    printed = {}
    for title in table.columns:
        if title.endswith((" sd", " noisy", " text")) or (title in ("Data", "Model") and table[title].nunique() < 2):
            continue
        if f"{title} text" in table:
            printed[title] = list(table[f"{title} text"])
        elif title in digits:
            n, sign = digits[title], "+" if "ifference" in title else ""
            sds, noisy = (table.get(f"{title} {more}", [None] * len(table)) for more in ("sd", "noisy"))
            printed[title] = [
                number(v, n, sign) + ("" if pd.isna(sd) else f" ± {sd:.{n}f}") + (NOISY if mark is True else "")
                for v, sd, mark in zip(table[title], sds, noisy)
            ]
        else:
            printed[title] = [MISSING if pd.isna(v) else str(v) for v in table[title]]
    return pd.DataFrame(printed)


def markdown(printed: pd.DataFrame, digits: Digits) -> str:
    """A frame of strings as a Markdown table: numbers aligned to the right, words to the left."""
    align = ["right" if title in digits else "left" for title in printed.columns]
    return printed.to_markdown(index=False, disable_numparse=True, colalign=align)


def save(
    table: pd.DataFrame, digits: Digits, caption: str, stem: Path, label: str, blocks: str | None = None
) -> list[Path]:
    """Write a table as .md and .tex, formatted, and as .csv, unformatted; return the paths.

    The columns in `digits` are numbers. Consecutive rows with the same text in the column `blocks` belong together: it
    is printed once, and in LaTeX a rule separates the blocks. Of an empty table, only the caption is written.
    """
    paths = [stem.with_name(stem.name + suffix) for suffix in (".md", ".tex", ".csv")]  # with_suffix would cut "a-0.5"
    if table.empty:
        paths[0].write_text(f"{caption}\n", encoding="utf-8")
        paths[1].write_text(f"% {caption}\n", encoding="utf-8")
    else:
        printed = formatted(table, digits)
        begins = [] if blocks is None else list(printed[blocks] != printed[blocks].shift())
        if blocks is not None:
            printed[blocks] = printed[blocks].where(begins, "")
        paths[0].write_text(f"{caption}\n\n{markdown(printed, digits)}\n", encoding="utf-8")
        paths[1].write_text(_latex(printed, digits, caption, label, begins), encoding="utf-8")
    numbers = table.drop(columns=[title for title in table.columns if title.endswith(" text")])
    numbers.to_csv(paths[2], index=False, na_rep=MISSING, float_format="%.6g", lineterminator="\n")
    return paths


def _latex(printed: pd.DataFrame, digits: Digits, caption: str, label: str, begins: Sequence[bool]) -> str:
    latex = printed.to_latex(
        index=False,
        escape=True,
        caption=re.sub(r"([&%$#_{}])", r"\\\1", caption),
        label=label,
        position="t",
        column_format="".join("r" if title in digits else "l" for title in printed.columns),
    ).replace("±", r"$\pm$")
    # Shrinks only tables that are too wide for the page.
    narrowed = "\\centering\n\\begin{adjustbox}{max width=\\textwidth}\n\\begin{tabular}"
    latex = latex.replace(r"\begin{tabular}", narrowed, 1)
    lines = latex.replace(r"\end{tabular}", "\\end{tabular}\n\\end{adjustbox}", 1).split("\n")
    head = lines.index(r"\midrule") + 1
    for i in reversed([i for i, begin in enumerate(begins) if begin and i]):  # a rule above each block but the first
        lines.insert(head + i, r"\midrule")
    return "% needs booktabs and adjustbox\n" + "\n".join(lines)


@contextlib.contextmanager
def writing(folder: Path, option: str) -> Iterator[None]:
    """Make `folder` for what the block writes.

    UserError: something cannot be written; the message suggests `option` to give another place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); give another place with {option}"
        ) from error


def embed(document: str | Path) -> None:
    """Update the tables in a Markdown document from the files they come from, so that nobody has to type one.

    The text between a line `<!-- begin PATH -->` (relative to the document) and the next `<!-- end -->` becomes the
    contents of PATH. UserError: the document, or a PATH in it, cannot be read or written.
    """
    document = Path(document)

    def block(match: re.Match) -> str:
        return f"{match[1]}\n{(document.parent / match[2]).read_text(encoding='utf-8').strip()}\n{match[3]}"

    try:
        text = document.read_text(encoding="utf-8")
        new = re.sub(r"(<!-- begin (\S+) -->)\n.*?(<!-- end -->)", block, text, flags=re.DOTALL)
        if new != text:
            write_text(document, new)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read or written ({error.strerror})") from error


# ---- tables of runs ------------------------------------------------------------------------------------------------


def write(runs: pd.DataFrame, output: Path) -> list[Path]:
    """Write the tables of a frame of runs: table and comparison as .md, .tex and .csv, and short.md; returns paths."""
    rows, compared = summary(runs), comparison(runs)
    paths = save(rows, digits_of(MEASURES), caption(runs), output / "table", "tab:results")
    about = _comparison_caption(runs, compared)
    paths += save(compared, digits_of(COMPARED), about, output / "comparison", "tab:comparison")
    path = output / "short.md"
    path.write_text(short(runs, paths[0]) + "\n", encoding="utf-8")
    return [*paths, path]


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per setting, objective, target and method: the mean (or median) and deviation of each measure.

    Measures are aggregated over seeds. The dense network comes first in its setting; the rest is ordered by objective
    and falling target, GCP before others.
    """
    return _placed(aggregate(in_order(runs), CELL, MEASURES), {"Method": "label"}, MEASURES)


def comparison(runs: pd.DataFrame) -> pd.DataFrame:
    """GCP minus every other method at the same setting, objective and target, seed by seed.

    GCP for another objective counts as another method. Cost is the one that both were pruned for; its difference is
    relative: GCP's over the other's, minus one.
    """
    place = ["setting", "objective", "target"]
    pruned = in_order(runs[runs.method != "Dense"])
    by_seed = pruned.assign(cost=pruned.cost_kept).groupby([*place, "method", "label", "seed"], sort=False)
    how = {"top1": "mean", "cost": "mean", "images_total": "mean", "cost_noisy": "any"}
    seeds = by_seed[[*how]].agg(how).reset_index()
    is_ours = seeds.method == seeds.objective.map(lambda name: COSTS[name].method)
    pairs = seeds[is_ours].merge(seeds[~is_ours], on=[*place, "seed"], suffixes=("", "_other"))
    apart = pairs.cost / pairs.cost_other - 1
    pairs = pairs.assign(difference=pairs.top1 - pairs.top1_other, cost_difference=100 * apart)
    cells = [*place, "label", "label_other"]
    # The seed with the largest difference decides: a mean could hide two that differ in opposite directions.
    furthest = apart.abs().groupby([pairs[key] for key in cells], sort=False).agg(lambda all_: all_.max(skipna=False))
    equal = [None if pd.isna(most) else "yes" if most <= EQUAL_COST else "NO" for most in furthest]
    table = _placed(aggregate(pairs, cells, COMPARED), {"Method": "label", "Other": "label_other"}, COMPARED)
    table.insert(len(table.columns) - 2, "Equal cost", equal)
    return table


def _placed(table: pd.DataFrame, names: Mapping[str, str], measures: Sequence[Measure]) -> pd.DataFrame:
    """What `aggregate` returned, with its cells as the table's first columns and the scale as the last."""
    first = {"Data": table.setting.str[0], "Model": table.setting.str[1]}
    first |= {title: table[key] for title, key in names.items()}
    first |= {"Objective": table.objective.map(cost_label), "Target %": 100.0 * table.target}
    return pd.DataFrame(first).join(table[[*titles(measures), "Seeds"]]).assign(Scale=table.setting.str[2])


def caption(runs: pd.DataFrame) -> str:
    """The caption of the table of runs."""
    evaluated = " or ".join(f"{n:,}" for n in sorted({int(n) for n in runs.n_eval.dropna()}))
    devices = "; ".join(sorted({device for device in runs.device if device}))
    n_values = runs[runs.method == "Dense"].groupby(["setting", "seed"]).top1.nunique()
    unlike = ", ".join(f"{setting[1]} seed {seed:g}" for setting, seed in n_values.index[n_values > 1])
    sentences = {
        f"{whose(runs)}. {' '.join(scale_sentences(runs.scale))}": True,
        f"Accuracies on {evaluated} {runs.images.iloc[0]} images.": evaluated,
        "Mean ± sample standard deviation over seeds; drop: points below the same seed's dense network.": True,
        "Images total: training images after the dense network; in the dense row, its own.": True,
        f"Throughput: median over seeds, {devices}; ratio: to the same run's dense network.": devices,
        NOISE: runs.noisy.any(),
        # Should not happen: equal options and seed give one dense network.
        f"CAUTION: the runs of {unlike} do not share one dense network; its row is their mean.": unlike,
    }
    return " ".join(sentence for sentence, is_said in sentences.items() if is_said)


def _comparison_caption(runs: pd.DataFrame, compared: pd.DataFrame) -> str:
    if compared.empty:
        return "No GCP run shares data, model, objective, target and seed with a run of another method."
    sentences = [
        f"Comparison at equal achieved cost, {whose(runs)}:",
        f"top-1 on {runs.images.iloc[0]} images of the method minus that of the other, seed by seed.",
        *scale_sentences(runs.scale),
        "Mean ± sample standard deviation over the seeds that both have.",
        "Cost: what both were pruned for (objective).",
        f"Equal cost says NO where any seed's achieved costs differ by more than {100 * EQUAL_COST:g} %.",
        *([NOISE] if runs.cost_noisy.eq(True).any() else []),
    ]
    return " ".join(sentences)


def whose(runs: pd.DataFrame) -> str:
    """The networks of each data set: "mobilenet1.0, resnet18_v1b on fashion_mnist"."""
    return "; ".join(f"{', '.join(sorted(some.model.unique()))} on {data}" for data, some in runs.groupby("data"))


def scale_sentences(scales: Iterable[str]) -> list[str]:
    """What every caption states about the scales of its runs."""
    return [SCALES.get(scale, f"Scale {scale}") + "." for scale in sorted(set(scales))]


# ---- the short table -----------------------------------------------------------------------------------------------


def short(runs: pd.DataFrame, full: Path) -> str:
    """A Markdown table of six columns that fits a terminal's line, with the noise of the accuracies.

    `full` is the path of the full table. The noise is the standard deviation over seeds or, for a single seed, the
    standard error of an accuracy measured on that number of test images.
    """
    table, names, targets = aggregate(in_order(runs), CELL, SHORT), [], []
    parts, options = dict(zip(runs.label, runs.parts)), [set(of[1:]) for of in runs.parts[runs.method != "Dense"]]
    shared = set.intersection(*options) if options else set()
    for setting, label, objective, target in table[CELL].itertuples(index=False):
        place = [part for key, part in zip(("data", "model", "scale"), setting) if runs[key].nunique() > 1]
        own = [re.sub(r"^\w+\.", "", part) for part in parts[label] if part not in shared]
        name = ", ".join([*place, *own])
        names.append(name if len(name) <= NAME else f"{name[: NAME - 4]} ...")
        targets.append(MISSING if pd.isna(target) else f"{100 * target:.4g} % of {cost_label(objective)}")
    is_single, top1, n_eval = table.Seeds == 1, table["Top-1 %"], table.pop("n_eval")
    table["Top-1 % sd"] = table["Top-1 % sd"].where(~is_single, (top1 * (100 - top1) / n_eval) ** 0.5)
    rows = pd.DataFrame({"Method": names, "Target": targets}).join(table.drop(columns=[*CELL, "Seeds"]))
    images = " or ".join(f"{int(n):,}" for n in sorted(set(runs.n_eval)))
    sentences = [
        f"{whose(runs)}.",
        *scale_sentences(runs.scale),
        *([] if is_single.all() else ["±: the standard deviation over seeds."]),
        *(
            [f"± of a single seed: the standard error of an accuracy on {images} {runs.images.iloc[0]} images."]
            if is_single.any()
            else []
        ),
        *([f"All pruned networks: {', '.join(sorted(shared))}."] if shared else []),
        "MACs, Params and Speed (throughput): over the dense network's.",
        *([NOISE] if runs.noisy.any() else []),
    ]
    words = textwrap.fill(" ".join(sentences), LINE, break_long_words=False, break_on_hyphens=False)
    digits = digits_of(SHORT)
    return f"{markdown(formatted(rows, digits), digits)}\n\n{words}\nThe full table: {full}"


# ---- other tables --------------------------------------------------------------------------------------------------


def write_int8(rows: list[dict], stem: Path) -> list[Path]:
    """Write the table of `experiment.measure.quantize`'s rows: pruning and quantisation, alone and together.

    The first row's network is the one that the others are compared with. UserError: the table cannot be written.
    """
    first = rows[0]
    at = first["float32"]
    table = pd.DataFrame(
        [
            {
                "Network": Path(row["network"]).parent.name or row["network"],
                "Arithmetic": form,
                "MACs kept %": 100.0 * row["macs"] / first["macs"],
                "Top-1 %": 100.0 * row[form]["top1"],
                "Points lost": 100.0 * (at["top1"] - row[form]["top1"]),
                "Images/s": row[form]["images_per_second"],
                "Images/s noisy": bool(row[form].get("noisy")),
                "Times the first": row[form]["times_first"],
            }
            for row in rows
            for form in ("float32", "int8")
        ]
    )
    caption = (
        f"Pruned and int8. Accuracies on {at['n_eval']:,} test images; int8 calibrated on "
        f"{first['n_calibration']:,} training images. Points lost and speed: against the first network in "
        f"float32. Speeds in turns, batch {at['batch']}, {at['device']}, {threads(at['threads'])}."
        + (f" {NOISE}" if table["Images/s noisy"].any() else "")
    )
    digits = {"MACs kept %": 2, "Top-1 %": 2, "Points lost": 2, "Images/s": 0, "Times the first": 2}
    with writing(stem.parent, "--table"):
        return save(table, digits, caption, stem, "tab:int8")


FRONT = (
    Measure("MACs kept %", "macs_kept", "mean", 1),
    Measure("Params kept %", "params_kept", "mean", 1),
    Measure("Top-1 %, statistics", "top1_statistics"),
    Measure("Top-1 %, least squares", "top1_fitted"),
    Measure("Seconds", "seconds", "mean", 1),
)


def write_front(rows: list[dict], stem: Path) -> list[Path]:
    """Write what a network achieves at several targets without training, from rows of `compress.explore`.

    The first row is the uncut network. UserError: the table cannot be written.
    """
    kept = {"Target %": [100 * row["target"] for row in rows]}
    percent = {m.title: [row[m.key] * (1 if m.key == "seconds" else 100) for row in rows] for m in FRONT}
    caption = (
        f"{rows[0]['network']} without training, cut to parts of its {cost_label(rows[0]['cost'])}. Top-1 on "
        f"{rows[0]['n_eval']:,} images held out of the training images: with batch-norm statistics recomputed, or "
        "with weights by least squares."
    )
    with writing(stem.parent, "--out"):
        return save(pd.DataFrame(kept | percent), digits_of(FRONT), caption, stem, "tab:front")


def write_without_training(rows: Iterable[BaseModel], folder: Path) -> list[Path]:
    """Write a table per network: accuracy by criterion and by what was renewed after the cut, at each target.

    Rows are those of `without_training.measure`. UserError: a table cannot be written.
    """
    runs, paths = pd.DataFrame([row.model_dump() for row in rows]), []
    renewed = {(False, False): "nothing", (True, False): "statistics", (False, True): "weights", (True, True): "both"}
    of_row = [renewed[key] for key in zip(runs.statistics, runs.fitted)]
    runs["Renewed"] = pd.Categorical(of_row, [*renewed.values()], ordered=True)
    runs["Criterion"] = pd.Categorical(runs.criterion, runs.criterion.unique(), ordered=True)
    for network, own in runs.groupby("network", sort=False):
        cells = own.groupby(["Criterion", "Renewed", "target"], observed=True)
        means, sds = (100 * cells.top1.agg(how).unstack() for how in ("mean", "std"))
        half = own[own.target == min(own.target, key=lambda target: abs(target - 0.5))]
        columns = {}
        for target in reversed(means.columns):
            columns |= {f"{100 * target:g} %": means[target], f"{100 * target:g} % sd": sds[target]}
        columns["Seconds"] = half.groupby(["Criterion", "Renewed"], observed=True).seconds.mean()
        digits = {title: 1 if title == "Seconds" else 2 for title in columns if not title.endswith(" sd")}
        dense = 100 * own.drop_duplicates("seed").dense_top1
        caption = (
            f"{network} on {own['data'].iloc[0]}, cut to parts of its MACs without any training. "
            f"{' '.join(scale_sentences(own.scale))} Top-1 % on {own.n_eval.iloc[0]:,} test images, mean ± sample "
            f"standard deviation over {own.seed.nunique()} seeds; the dense network: {number(dense.mean(), 2)} ± "
            f"{number(dense.std(), 2)}. Random, L1 and what says uniform keep the same fraction of every group, the "
            "others rank all groups together. Seconds: at half of the MACs, from the scores to the small network."
        )
        with writing(folder, "output"):
            table = pd.DataFrame(columns).reset_index()
            paths += save(table, digits, caption, folder / network, f"tab:without-{network}", blocks="Criterion")
    return paths


def write_validations(folder: Path) -> list[Path]:
    """Write a table of the validations of all latency models in a folder, and return the paths.

    They are the files `*.validation.json`, in the form of `latency.validate`. UserError: there are none, or one cannot
    be read.
    """
    found = [
        read_json(path, Validation, "create it again with `latency.py validate`, or remove it")
        for path in sorted(folder.glob("*.validation.json"))
    ]
    if not found:
        raise UserError(f"{folder}: holds no *.validation.json; `scripts/latency.py validate` writes them with --out")
    models = list(dict.fromkeys(name for result in found for name in result.quality))
    lines = []
    for result in found:
        line = {
            "Network": f"{result.network}, {result.input[1]} px, batch {result.setup.batch}",
            "Own latency (ms)": 1e3 * result.reference_s,
            "Granularity": result.granularity,
            "Sampled": result.n_samples,
            "Minutes": None if result.sampling_s is None else result.sampling_s / 60,
            "Held out": len(result.measured_s),
            "Span": "{:.2f} to {:.2f}".format(*result.span),
        }
        for name in models:
            good = result.quality.get(name)
            line |= {f"{name}: NRMSE %": good and 100.0 * good.nrmse, f"tau, {name}": good and good.tau}
        lines.append(line)
    digits = {"Own latency (ms)": 2, "Granularity": 0, "Sampled": 0, "Minutes": 1, "Held out": 0}
    for name in models:
        digits |= {f"{name}: NRMSE %": 1, f"tau, {name}": 3}
    setups = sorted({setup_of(result) for result in found})
    caption = (
        f"Predicted against measured latency of networks with random widths that no model was fitted to "
        f"({'; '.join(setups)}). NRMSE: root mean squared error over the mean; tau: Kendall's; span: of the "
        "held-out networks' latencies, over the network's own. MACs: proportional to them; layers alone: the "
        "sum of all layers, each timed by itself; repeat measurement: the same networks timed a second time, "
        "which no model can be nearer than by luck."
    )
    return save(
        pd.DataFrame(lines).astype(dict.fromkeys(digits, float)), digits, caption, folder / "validation", "tab:latency"
    )


def setup_of(result: Validation, batch: bool = False) -> str:
    """The conditions of measured latencies: "mxnet on AMD EPYC, float32, 1 thread"; with the batch if asked for."""
    setup, of_batch = result.setup, f", batch {result.setup.batch}" if batch else ""
    return f"{setup.runtime} on {result.hardware.cpu}, {setup.dtype}{of_batch}, {threads(setup.threads)}"


def forecast(rows: Sequence[Any], measured: str | None = None) -> str:
    """What experiments will take (rows of `experiment.estimate`) as Markdown, with a total and notes on its basis."""
    lines = [
        {
            "Experiment": row.name,
            "Seed": row.seed,
            "Level": None if row.table in (None, "figure1") else row.level,
            "Target %": row.target and f"{100 * row.target:.4g} of {row.objective}{', chosen' if row.chosen else ''}",
            # Rounded up: a target of what is printed can be reached.
            "Reachable": row.target
            and ("yes" if row.is_reachable else f"NO: {math.ceil(1e4 * row.lowest) / 100:.2f} % at least"),
            "Lowest %": row.lowest and 100 * row.lowest,
            "Params (M), uniform": row.params / 1e6,
            "Params (M), uniform noisy": row.stand_in,
            "GMACs, uniform": row.macs / 1e9,
            "GMACs, uniform noisy": row.stand_in,
            "Images, dense": row.images_dense,
            "Images, pruning": row.images_prune,
            "Images, fine-tuning": row.images_finetune,
            "Images": row.images,
            "Time": row.seconds and duration(row.seconds),
        }
        for row in rows
    ]
    images = ["Images, dense", "Images, pruning", "Images, fine-tuning", "Images"]
    digits = {"Seed": 0, "Level": 0, "Lowest %": 2, "Params (M), uniform": 3, "GMACs, uniform": 4}
    digits |= dict.fromkeys(images, 0)
    total = {"Experiment": "all", "Images": number(sum(row.images for row in rows), 0)}
    total["Time"] = MISSING if measured is None else duration(sum(row.seconds for row in rows))
    printed = pd.concat([formatted(pd.DataFrame(lines), digits), pd.DataFrame([total])]).fillna("")
    notes = ["Params and MACs: of the network pruned uniformly to the target; without one, of the network itself."]
    if any(row.stand_in for row in rows):
        notes.append("*: the network to start from is not there yet; its uniform counterpart stands in.")
    notes.append("Time: not measured." if measured is None else f"Time: on {measured}.")
    return f"{markdown(printed, {**digits, 'Time': None})}\n\n{' '.join(notes)}"


def duration(seconds: float) -> str:
    """Seconds in a suitable unit: "45 s", "12 min", "7.5 h", "31 days"."""
    for unit, size, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 72)):
        if seconds < most * size:
            return f"{seconds / size:,.{0 if size < 3600 else 1}f} {unit}"
    return f"{seconds / 86400:,.0f} days"


def released(facts: Sequence[dict]) -> str:
    """The released PruneNets (facts of `experiment.released`) as Markdown."""
    digits = dict.fromkeys(facts[0].keys() - {"Network"}, 0)
    digits |= {"Params (M)": 3, "GMACs": 3, "Params kept": 4, "MACs reduction": 2, "Params with norms (M)": 3}
    digits |= {"Top-1 %": 2, "Top-5 %": 2}
    return markdown(formatted(pd.DataFrame(facts), digits), digits)
