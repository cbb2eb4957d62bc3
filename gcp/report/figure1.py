"""The paper's Figure 1, and its networks on other hardware: from published data and timings to a ranking and figures.

The published data are the accuracy and throughput of GluonCV's networks on one GPU (`results/reference`); what is
measured here is the throughput of the PruneNets, their bases and the MobileNets, with made-up weights. Tables show how
far the order of the networks is the same on both devices, and which PruneNets a MobileNet beats.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import List, Optional

import pandas as pd
from scipy import stats

from gcp.cost.sampling import Hardware, NotNegative, Positive, Schema, Setup
from gcp.errors import UserError
from gcp.experiment.record import Count
from gcp.report import figures, tables
from gcp.report.figures import MOBILENETS, OTHER, PRUNENET, RESNET
from gcp.report.frame import threads
from gcp.storage import read_json, write_json

INPUT = (3, 224, 224)
MARGIN = 0.05  # two networks closer than this (relative) on either device have no order that could flip
FAMILIES = {"mobilenet": MOBILENETS[0], "mobilenetv2": MOBILENETS[1]}
DEVICES = {"V100": "v100", "CPU": "cpu"}  # title -> column of the device's speeds
DIGITS = {"Top-1 %": 2, "GMACs": 3, "V100 images/s": 0, "CPU images/s": 1, "V100 rank": 0, "CPU rank": 0}
DIGITS |= {"V100 ratio": 2, "CPU ratio": 2, "V100 ratio to base": 2, "CPU ratio to base": 2}


class Timed(Schema):
    """A network that was timed here."""

    name: str
    latency_s: Positive
    images_per_second: Positive
    spread: NotNegative
    n: Count
    noisy: bool
    attempts: Optional[Count] = None
    macs: Count
    params: Count


class Measured(Schema):
    """`measured.json`: networks timed in one setup."""

    setup: Setup
    input: List[Count]
    hardware: Hardware
    networks: List[Timed]


# ---- published data ------------------------------------------------------------------------------------------------


def published(folder: Path) -> pd.DataFrame:
    """The networks of the published Figure 1, fastest first.

    Columns: `name`, `top1` (%), `images_per_second`, `device`, `batch`, `base` (of a PruneNet, else None), `chain` (a
    base and its PruneNets) and `kind` (PruneNet, ResNet, a version of MobileNet, or other). UserError: a file of
    `folder` is missing or lacks a column or a network.
    """
    columns = {"model": "name", "top1_acc": "top1", "throughput_img_per_s": "images_per_second"}
    columns |= {"device": "device", "batch_size": "batch"}
    networks = read_table(folder / "gluoncv_fig1_throughput_v100.csv", columns)
    released = read_table(folder / "released_prunenets.csv", {"model": "name", "base_model": "base"})
    lacking = (set(released.name) | set(released.base)) - set(networks.name)
    if lacking:
        raise UserError(f"{folder}: the published throughputs lack {', '.join(sorted(lacking))}")
    networks = networks.sort_values(["images_per_second", "name"], ascending=[False, True], ignore_index=True)
    base = networks.name.map(dict(zip(released.name, released.base))).astype(object)
    is_base, resnets = networks.name.isin(released.base), _resnets(networks.name, set(released.base))
    kind = networks.name.map(lambda name: RESNET if name in resnets else FAMILIES.get(family(name), OTHER))
    return networks.assign(
        base=base.where(base.notna(), None),
        chain=base.where(base.notna(), networks.name.where(is_base, None)),
        kind=kind.mask(base.notna(), PRUNENET),
    )


def read_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """Columns of a table of published numbers, renamed.

    UserError: the file is not as it came with the toolkit.
    """
    try:
        return pd.read_csv(path)[list(columns)].rename(columns=columns)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as the published data that came with the toolkit: {error}") from error


def family(name: str) -> str:
    """The common name of all sizes of a network: "mobilenetv2" of "mobilenetv2_0.25", "resnet" of "resnet50_v1d"."""
    return re.match(r"(?:se_)?[a-z]+?(?:v\d+)?(?=[\d_]|$)", name)[0]


def _resnets(names: Sequence[str], bases: set[str]) -> set[str]:
    """The PruneNets' bases and the ResNets between them: depths without a base, in a version that some base has."""
    parts = {name: re.fullmatch(r"resnet(\d+)_(v\d\w)", name) for name in names}
    depth = {name: int(match[1]) for name, match in parts.items() if match}
    taken = {depth[base] for base in bases}
    versions = {parts[base][2] for base in bases}
    return bases | {
        name for name, n in depth.items() if parts[name][2] in versions and n < max(taken) and n not in taken
    }


def to_measure(networks: pd.DataFrame, only: Sequence[str] = ()) -> pd.DataFrame:
    """The networks that the comparison is about, or those named in `only`.

    UserError: one of these was never published.
    """
    for name in only:
        if name not in set(networks.name):
            near = difflib.get_close_matches(name, networks.name, n=3)
            raise UserError(
                f"network '{name}' is not in the published data" + (f"; nearest: {', '.join(near)}" if near else "")
            )
    return networks[networks.name.isin(only) if only else networks.kind != OTHER]


# ---- measuring -----------------------------------------------------------------------------------------------------


def measure(
    networks: pd.DataFrame,
    path: Path,
    setup: dict,
    hardware: dict,
    clock: Callable[[str], dict],
    progress: Callable[[float, str], None] = lambda done, name: None,
) -> dict:
    """Time each network that `path` does not hold yet; the file is written after each, so a kill costs one network.

    `clock(name)` returns the keys of `Timed` except the name. Before each network, `progress` is called with the share
    of the work that is done (estimated from the published speeds) and the network's name; at the end, with 1 and no
    name. UserError: `path` holds measurements of another setup or processor, or something else.
    """
    here = {"setup": setup, "input": list(INPUT), "hardware": hardware}
    held = read(path) if os.path.lexists(path) else {**here, "networks": []}
    if _conditions(held) != _conditions(here):
        raise UserError(
            f"{path}: was measured with {_conditions(held)}, but this is {_conditions(here)}; "
            "give another folder with --out"
        )
    left = networks[~networks.name.isin([row["name"] for row in held["networks"]])]
    work = 1 / left.images_per_second
    for name, done in zip(left.name, (work.cumsum() - work) / work.sum()):
        progress(done, name)
        held = {**held, "networks": [*held["networks"], {"name": name, **clock(name)}]}
        write_json(path, held)
    progress(1.0, "")
    return held


def read(path: Path) -> dict:
    """Read what `measure` wrote.

    UserError: the file holds something else.
    """
    return read_json(path, Measured, "remove it or give another folder with --out").model_dump(exclude_unset=True)


def _conditions(held: dict) -> str:
    """The conditions of measured speeds, in words; files with the same conditions can be compared."""
    setup, size = held["setup"], "x".join(map(str, held["input"]))
    where = f"{setup['runtime']} on {setup['device']} ({held['hardware']['cpu']}), {setup['dtype']}"
    return f"{where}, batch {setup['batch']}, {threads(setup['threads'])}, input {size}"


# ---- comparing -----------------------------------------------------------------------------------------------------


def joined(networks: pd.DataFrame, rows: list[dict]) -> pd.DataFrame:
    """The networks that were measured, with `v100` and `cpu` in images per second, `macs`, `spread` and `noisy`.

    UserError: a measured network was never published.
    """
    here = pd.DataFrame(rows, columns=list(Timed.model_fields)).rename(columns={"images_per_second": "cpu"})
    unknown = set(here.name) - set(networks.name)
    if unknown:
        raise UserError(f"measured networks that were never published: {', '.join(sorted(unknown))}; remove them")
    return networks.rename(columns={"images_per_second": "v100"}).merge(here, on="name")


def ranking(both: pd.DataFrame) -> pd.DataFrame:
    """One row per measured network, fastest on the V100 first: speeds, speeds over those of the base, and ranks."""
    table = pd.DataFrame({"Network": both.name, "Top-1 %": both.top1, "GMACs": both.macs / 1e9})
    for what in ("images/s", "ratio to base", "rank"):
        for title, key in DEVICES.items():
            ratio = both[key] / both.base.map(both.set_index("name")[key])
            rank = both[key].rank(ascending=False, method="min")
            table[f"{title} {what}"] = {"images/s": both[key], "ratio to base": ratio, "rank": rank}[what]
    return table


def agreement(both: pd.DataFrame) -> float:
    """Kendall's tau between the throughputs on both devices; NaN for fewer than two networks."""
    return float(stats.kendalltau(both.v100, both.cpu).statistic) if len(both) > 1 else float("nan")


def flips(both: pd.DataFrame) -> pd.DataFrame:
    """Pairs of networks whose order differs between the devices by more than `MARGIN` on both, the widest first."""
    pairs = []
    for fast, slow in itertools.permutations(both.itertuples(), 2):
        there, here = fast.v100 / slow.v100, slow.cpu / fast.cpu
        if min(there, here) > 1 + MARGIN:
            pairs.append((fast.name, slow.name, there, here))
    pairs.sort(key=lambda pair: (-pair[2] * pair[3], pair))
    return pd.DataFrame(pairs, columns=["Faster on the V100", "Faster on the CPU", "V100 ratio", "CPU ratio"])


def dominators(both: pd.DataFrame, name: str, speed: str) -> list[str]:
    """The MobileNets that are at least as accurate as a network, and at least as fast by column `speed`."""
    own = both.set_index("name").loc[name]
    better = both[both.kind.isin(MOBILENETS) & (both.top1 >= own.top1) & (both[speed] >= own[speed])]
    return list(better.name)


def dominated(both: pd.DataFrame) -> pd.DataFrame:
    """For each PruneNet, the MobileNets that dominate it on each device: names, "none", or None if none was timed."""
    some = both[both.kind == PRUNENET]
    table = pd.DataFrame({"Network": some.name, "Base": some.base, "Top-1 %": some.top1})
    for title, key in DEVICES.items():
        table[f"Dominated by, {title}"] = [
            (", ".join(dominators(both, name, key)) or "none") if both.kind.isin(MOBILENETS).any() else None
            for name in some.name
        ]
    return table


# ---- writing -------------------------------------------------------------------------------------------------------


def write(networks: pd.DataFrame, measured: dict | None, output: Path) -> list[Path]:
    """Draw the published figure and, if networks were `measured`, theirs; write the tables that compare the devices.

    Files: figure1_v100 and figure1_cpu as .png and .svg; ranking, flips and dominated as .md, .tex and .csv. The same
    data give the same bytes. Returns the paths.
    """
    figure = figures.figure1(
        networks,
        figures.KINDS,
        f"ImageNet accuracy against throughput: {published_on(networks)}",
        f"The paper's Figure 1, redrawn from GluonCV's published data of {len(networks)} networks. "
        "A line runs from each base through its PruneNets.",
    )
    paths = figures.save(figure, output / "figure1_v100")
    if measured is None or not measured["networks"]:
        return paths
    both, setup = joined(networks, measured["networks"]), _conditions(measured)
    figure = figures.figure1(
        both.assign(images_per_second=both.cpu),
        figures.KINDS,
        f"The networks of the paper's Figure 1 on {measured['hardware']['cpu']}",
        f"Accuracy: published. Throughput: {setup}; made-up weights.",
    )
    paths += figures.save(figure, output / "figure1_cpu")
    where = f"V100: published, {published_on(networks)}. CPU: measured, {setup}, made-up weights."
    turned, beaten = flips(both), dominated(both)
    counts = [
        f"{(~beaten[f'Dominated by, {device}'].isin(['none', None])).sum()} of {len(beaten)} on the {device}"
        for device in DEVICES
    ]
    related = both[both.kind.eq(PRUNENET) | both.name.isin(both.base.dropna())]
    noisy = f" NOISY: {', '.join(both.name[both.noisy.astype(bool)])}." if both.noisy.any() else ""
    for name, table, caption in (
        (
            "ranking",
            ranking(both),
            f"{where} Median of {both.n.min()} passes or more; widest spread (interquartile range over median) "
            f"{100 * both.spread.max():.0f} %.{noisy} Kendall's tau between both throughputs: "
            f"{tables.number(agreement(both), 3)} over all {len(both)} networks, "
            f"{tables.number(agreement(related), 3)} over the {len(related)} PruneNets and bases.",
        ),
        (
            "flips",
            turned,
            f"{len(turned)} of {math.comb(len(both), 2)} pairs of networks change their order between the V100 and "
            f"the CPU by more than {100 * MARGIN:g} % on both. {where}",
        ),
        (
            "dominated",
            beaten,
            "PruneNets for which a MobileNet (v1 or v2) of this comparison is at least as "
            f"accurate and at least as fast: {', '.join(counts)}. {where}",
        ),
    ):
        paths += tables.save(table, DIGITS, caption, output / name, f"tab:{name}")
    return paths


def published_on(networks: pd.DataFrame) -> str:
    """The devices and batch sizes of the published speeds."""
    devices, batches = networks.device.unique(), networks.batch.unique()
    return f"{' and '.join(devices)}, batch {' and '.join(map(str, batches))}"
