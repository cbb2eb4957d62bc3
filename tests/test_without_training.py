"""What pruning without training is worth: rows that resume, and their table by hand."""

from pathlib import Path

import pytest

from gcp.errors import UserError
from gcp.experiment import config, without_training
from gcp.report import tables
from scripts import without_training as script

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "without_training"
CONFIG = """
scale: smoke
threads: 1
model: {name: cifar_resnet20_v1}
data: {name: digits, input: [3, 8, 8], batch: 16, n_train: 60}
train: {epochs: 1, lr: 0.05}
"""


def row(**values):
    return without_training.Row(
        **{
            **dict(network="n", data="d", scale="smoke", seed=0, criterion="l1", statistics=False, fitted=False),
            **dict(target=0.5, macs_kept=0.5, top1=0.5, dense_top1=0.9, n_eval=100, seconds=1.0),
            **values,
        }
    )


def test_the_table_by_hand(tmp_path):
    rows = [row(seed=s, top1=0.5 + 0.1 * s, seconds=s) for s in (0, 1)]
    rows += [row(seed=s, fitted=True, top1=0.8, target=t) for s in (0, 1) for t in (0.5, 0.1)]
    rows += [row(seed=s, target=0.1, top1=0.2) for s in (0, 1)]
    text = tables.write_without_training(rows, tmp_path)[0].read_text()
    assert "| l1          | nothing   | 55.00 ± 7.07 | 20.00 ± 0.00 |       0.5 |" in text
    assert "|             | weights   | 80.00 ± 0.00 | 80.00 ± 0.00 |       1.0 |" in text
    assert "90.00 ± 0.00" in text and "100 test images" in text


def test_two_configurations_of_one_network_are_refused(tmp_path):
    """Their rows would be averaged as if they were seeds."""
    for name, n in (("a", 60), ("b", 80)):
        (tmp_path / f"{name}.yaml").write_text(CONFIG.replace("n_train: 60", f"n_train: {n}"))
    with pytest.raises(UserError, match="cifar_resnet20_v1"):
        script.run([str(tmp_path), "--set", f"output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rows_are_measured_once(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG)
    cfg, told = config.load(path, [f"output={tmp_path}"]), []
    whole = without_training.measure(cfg, (0.5,), lambda done, n: told.append((done, n)))
    assert len(whole) == 24 and told[-1] == (24, 24)
    assert all(row.macs_kept <= 0.5 for row in whole)
    again = without_training.measure(cfg, (0.5,), lambda done, n: told.append((done, n)))
    assert again == whole and len(told) == 24
    more = without_training.measure(cfg, (0.5, 0.3), lambda done, n: None)
    assert more[:24] == whole and {row.target for row in more[24:]} == {0.3}
    without_training.rows_path(cfg).write_text('[{"top1": 5}]')
    with pytest.raises(UserError, match="remove it"):
        without_training.measure(cfg, (0.5,), lambda done, n: None)


def test_a_changed_configuration_has_rows_of_its_own(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG)
    same, other, dense, cut = (
        without_training.rows_path(config.load(tmp_path / "c.yaml", [f"output={tmp_path}", *changed]))
        for changed in ([], ["seed=1"], ["train.epochs=2"], ["prune.round_to=4"])
    )
    assert len({same, other, dense, cut}) == 4 and same.parent == tmp_path


@pytest.mark.parametrize("name", ["resnet18_v1b", "mobilenet0.5"])
def test_checked_in_tables_are_those_of_the_rows(name, tmp_path):
    loaded = config.load_all(ROOT / "configs" / "without_training" / f"{name}.yaml", (), (0, 1, 2), ())
    paths = [RESULTS / without_training.rows_path(cfg).name for _, _, cfg in loaded]
    rows = [row for path in paths for row in without_training.read_rows(path)]
    written = tables.write_without_training(rows, tmp_path)[0]
    assert written.read_text() == (RESULTS / f"{name}.md").read_text()
