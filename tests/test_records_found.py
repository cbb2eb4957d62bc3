"""Every checked-in record is found by its configuration, and says the configuration that it was made with."""

from pathlib import Path

import pytest

from gcp.experiment import config
from gcp.experiment import record as records

REPO = Path(__file__).parents[1]
# Of configurations, what checked-in results say otherwise, and overlays.
AT = [
    [f"configs/benchmark/_macs-{target}.yaml", *network]
    for network in ([], ["configs/benchmark/_mobilenet0.5.yaml"])
    for target in ("0.5", "0.25", "0.1", "0.05", "0.02")
]
BENCHMARKS = ["benchmark", *(f"benchmark/{path.name}" for path in REPO.glob("configs/benchmark/*") if path.is_dir())]
FOLDERS = [
    ("configs/fashion_mnist", []),
    ("configs/fashion_mnist/ablation", []),
    ("configs/fashion_mnist_latency", []),
    ("configs/statistics", []),
    ("configs/demo", ["output=results/fashion_mnist_part"]),
    ("configs/demo", ["output=results/fashion_mnist_part_choice", "data.validation=0.3"]),
    *(("configs/benchmark", [], f"configs/benchmark/_short-macs-{target}.yaml") for target in ("0.1", "0.02")),
    *(("configs/width_search", [], f"configs/width_search/_latency-{bound}.yaml") for bound in ("0.4", "0.2")),
    *(
        (
            "configs/width_search",
            [],
            f"configs/width_search/_latency-{bound}.yaml",
            f"configs/width_search/_{network}.yaml",
        )
        for network, bounds in {"mobilenet0.5": ("0.6", "0.4"), "resnet18_v1b@0.5": ("0.4", "0.25")}.items()
        for bound in bounds
    ),
    *((f"configs/{folder}", [], *overlays) for folder in BENCHMARKS for overlays in AT),
    *(
        (f"configs/benchmark/{name}.yaml", [f"finetune.lr={lr}", "output=results/comparison/learning_rate"], *overlays)
        for name in ("uniform-l1", "gcp")
        for lr in (0.01, 0.03, 0.1)
        for overlays in AT
    ),
]
SEEDS = [0, 1, 2, 10, 11, 12]


@pytest.fixture(scope="module")
def checked_in():
    return {
        run.path: run.record
        for folder in (
            "comparison",
            "fashion_mnist",
            "fashion_mnist_latency",
            "fashion_mnist_part",
            "fashion_mnist_part_choice",
            "statistics",
            "width_search",
        )
        for run in records.load_records(REPO / "results" / folder)
    }


@pytest.mark.slow
def test_every_record_is_found_by_a_checked_in_configuration(checked_in, monkeypatch):
    monkeypatch.chdir(REPO)
    found = set()
    for folder, overrides, *overlays in FOLDERS:
        for _, _, cfg in config.load_all(folder, overrides, SEEDS, overlays):
            if records.is_done(cfg):
                found.add(REPO / records.run_path(cfg))
    assert found == set(checked_in)


@pytest.mark.slow
def test_folder_fingerprint_and_configuration_agree(checked_in, monkeypatch):
    monkeypatch.chdir(REPO)
    for path, record in checked_in.items():
        prune = {
            key: "auto" if key == "round_to" and value is None else value
            for key, value in record.config["prune"].items()
        }
        unset = {key for key in ("target_ms", "target_images_per_second") if prune[key] is None}
        unset |= {"target"} if record.method == "none" else set()
        prune = {key: value for key, value in prune.items() if key not in unset}
        cfg = config.Config.model_validate({**record.config, "prune": prune})
        assert path.name == f"{record.name}-seed{record.seed}-{record.fingerprint}"
        assert cfg.fingerprint() == record.fingerprint
