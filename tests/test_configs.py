"""Every configuration in configs/: it loads, says how to run it, its network can be built and its target be reached."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pandas as pd
import pytest

from gcp.data import smoke
from gcp.experiment import config, estimate

REPO = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in (REPO / "configs").glob("*/**/*.yaml") if not path.name.startswith("_"))
# A file per method, which overlays give a target.
BENCHMARK, WIDTH_SEARCH = REPO / "configs" / "benchmark", REPO / "configs" / "width_search"
ARCHITECTURE = REPO / "configs" / "architecture_search"
SMOKE_ROOTS = {str(smoke.ROOT / name) for name in smoke.SETS}
TABLES = {path: config.load(path) for path in FILES if path.parent.name.startswith(("table", "figure"))}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(REPO)  # saved networks, latency models and outputs are named from there


def test_there_are_some_of_every_table():
    for folder, names in (
        ("imagenet", ["figure1", "table1", "table2", "table3", "table4", "table5"]),
        ("caltech256", ["table6"]),
    ):
        assert sorted({p.parent.name for p in TABLES if p.parent.parent.name == folder}) == names


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(
            folder, id=str(folder.relative_to(REPO)), marks=pytest.mark.slow if folder.name == "figure1" else ()
        )
        for folder in sorted(
            {path.parent for path in FILES if not {BENCHMARK, WIDTH_SEARCH, ARCHITECTURE} & set(path.parents)}
        )
    ],
)
def test_it_loads_and_its_target_can_be_reached(folder):
    loaded = config.load_all(folder)
    for (path, _, cfg), row in zip(loaded, estimate.forecast([cfg for _, _, cfg in loaded])):
        here = path.relative_to(REPO)
        assert cfg.name == path.stem
        assert path.read_text().startswith(f"# python scripts/run.py {here}"), path
        assert row.is_reachable and row.params > 0 and row.macs > 0
        # An ablation goes beside what it is compared with.
        results = [f"results/{p.relative_to('configs')}" for p in (here.parent, here.parent.parent)]
        assert cfg.output == results[0] or folder.name == "ablation" and cfg.output == results[1]
        if cfg.prune.method != "none":
            assert path.stem.startswith(f"{cfg.prune.method}-{cfg.prune.objective}-{cfg.prune.target:g}"), path


@pytest.mark.slow
@pytest.mark.parametrize(
    "folders, n_targets, n_others",
    [([BENCHMARK, BENCHMARK / "grid", BENCHMARK / "peers"], 5, 1), ([WIDTH_SEARCH], 4, 2)],
    ids=["benchmark", "width_search"],
)
def test_every_method_of_a_comparison_has_the_same_terms(folders, n_targets, n_others):
    """At every target, for every network: data, dense network, recipe, rounding; the scratch controls train longer, and
    say so."""
    is_search = folders == [WIDTH_SEARCH]
    targets = sorted(path for path in folders[0].glob("_*-*.yaml") if not path.name.startswith("_short"))
    others = [[path] for name in ("mobilenet", "resnet") for path in folders[0].glob(f"_{name}*.yaml")]
    assert (len(targets), len(others)) == (n_targets, n_others)
    for target, other in itertools.product(targets, [[], *others]):
        loaded = [cfg for folder in folders for _, _, cfg in config.load_all(folder, (), None, [target, *other])]
        longer = {"extra_epochs", "from_scratch"}
        terms = {
            (
                cfg.dense_fingerprint(),
                cfg.output,
                cfg.prune.target,
                cfg.prune.round_to,
                cfg.prune.statistics_images,
                cfg.finetune.model_dump_json(exclude=longer),
            )
            for cfg in loaded
        }
        assert len(terms) == 1
        assert (loaded[0].finetune.includes_pruning, loaded[0].finetune.from_scratch) == (not is_search, is_search)
        assert all(bool(cfg.finetune.extra_epochs) == cfg.name.startswith("scratch-") for cfg in loaded)
        assert len({cfg.fingerprint() for cfg in loaded}) == len(loaded) == len({cfg.name for cfg in loaded})
        assert all(cfg.name.endswith(f"-{cfg.prune.objective}-{cfg.prune.target:g}") for cfg in loaded)


def test_what_is_distilled_differs_from_its_counterpart_by_the_teacher_only():
    for path, _, cfg in config.load_all(BENCHMARK / "distilled"):
        plain = config.load(BENCHMARK / path.name.replace("-distilled", ""))
        teacher = {"finetune": {"teacher", "teacher_weight", "teacher_temperature"}, "name": True}
        assert cfg.finetune.teacher == "dense" and plain.finetune.teacher is None
        assert cfg.model_dump(exclude=teacher) == plain.model_dump(exclude=teacher)


def test_targets_are_the_published_ones_or_say_that_they_are_chosen():
    rows = pd.read_csv(REPO / "results" / "reference" / "prunenet_table_skeleton.csv")
    for path, cfg in TABLES.items():
        table = int(cfg.paper.table[-1])
        if cfg.paper.table == "figure1" or cfg.prune.method == "none":
            continue
        published = rows[(rows.table == table) & rows.target_fraction_kept.notna()].target_fraction_kept.tolist()
        assert published == sorted(published, reverse=True)
        if cfg.paper.chosen:
            assert cfg.prune.target not in published and cfg.paper.level > len(published), path
        else:
            assert cfg.prune.target == published[cfg.paper.level - 1], path


def test_the_chosen_levels_are_the_costs_of_released_networks():
    released = pd.read_csv(REPO / "results" / "reference" / "released_prunenets.csv").set_index("model").macs_reduction
    for path, cfg in TABLES.items():
        if cfg.paper.chosen and path.parent.parent.name == "imagenet":
            named = re.search(r"the released (\w+\.\d+)\.", path.read_text())[1]
            assert cfg.prune.target == pytest.approx(1 / released[named], abs=0.001)


@pytest.mark.slow
def test_a_row_and_its_smoke_differ_in_size_only():
    overlay = REPO / "configs" / "smoke.yaml"
    for path, cfg in TABLES.items():
        small = config.load(path, (), [overlay])
        assert (small.scale, cfg.scale) == ("smoke", "paper")
        assert small.output == cfg.output.replace("results/", "results/smoke/")
        assert small.data.root == cfg.data.root.replace("data/", "data/smoke/") and small.data.root in SMOKE_ROOTS
        size = {
            "data": {"root", "input", "batch", "n_train", "validation", "split_file"},
            "model": {"pretrained", "name"},
            "train": {"epochs", "lr", "warmup_epochs", "dtype"},
            "finetune": {"epochs", "lr", "warmup_epochs", "dtype"},
            "prune": {
                "gcp": {"iterations", "regularise_epochs", "recover_epochs", "lr", "recover_lr"},
                "random_widths": {"tries"},
                "autoslim": {"levels"},
            },
            "throughput": {"batch", "repeats"},
            "scale": True,
            "output": True,
        }
        assert small.model_dump(exclude=size) == cfg.model_dump(exclude=size)
        assert small.model.name == cfg.model.name.replace("results/", "results/smoke/")


@pytest.mark.slow
def test_every_configuration_has_a_small_version():
    for path in FILES:
        small = config.load(path, (), [REPO / "configs" / "smoke.yaml"])
        assert small.scale == "smoke" and small.output.startswith("results/smoke/"), path
        assert (small.data.n_train, small.train.epochs, small.data.input) == (400, 3, (3, 32, 32)), path


def test_uniform_and_gcp_are_trained_alike():
    for path, cfg in TABLES.items():
        if cfg.prune.method == "uniform":
            other = TABLES[path.with_name(path.name.replace("uniform", "gcp"))]
            assert (cfg.model, cfg.data, cfg.train, cfg.finetune) == (
                other.model,
                other.data,
                other.train,
                other.finetune,
            )
            assert cfg.dense_fingerprint() == other.dense_fingerprint()


def test_table6_starts_from_what_table3_leaves():
    for cfg in TABLES.values():
        if cfg.paper.table == "table6" and cfg.paper.level:
            source = config.load(REPO / cfg.paper.starts_from)
            assert cfg.model.name == f"{source.output}/{source.name}-seed{{seed}}-*/final" and cfg.model.new_head
            assert source.paper.level == cfg.paper.level


def test_every_architecture_search_starts_from_one_network_and_trains_alike():
    folders = [[cfg for _, _, cfg in config.load_all(ARCHITECTURE / name)] for name in (".", "categories", "best_five")]
    assert list(map(len, folders)) == [5, 6, 5]
    transferred = [config.load(path) for path in sorted((ARCHITECTURE / "transfer").glob("transferred*.yaml"))]
    assert {cfg.output for cfg in transferred} == {folders[1][0].output}, "they stand beside the searches"
    assert len({cfg.fingerprint() for cfg in transferred}) == len(transferred) == 2, "each a pattern of its own"
    assert [len({cfg.output for cfg in loaded}) for loaded in folders] == [1, 1, 1]
    loaded = [cfg for of_folder in (*folders, transferred) for cfg in of_folder]
    assert len({(cfg.dense_fingerprint(), cfg.finetune) for cfg in loaded}) == 1
    assert len({cfg.prune.architecture.training for cfg in loaded}) == 1  # so that candidates are shared
    [digits] = [cfg for _, _, cfg in config.load_all(ARCHITECTURE / "transfer") if cfg.name == "digits"]
    assert digits.prune.architecture.space == folders[1][0].prune.architecture.space
