"""docs/extending.md: every example is run, and what it adds is used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Tuple

import numpy as np
from pydantic import Field

from gcp.data import base, datasets
from gcp.experiment.config import Config

DOCS = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def example(section: str) -> str:
    """The Python block of a section."""
    return re.search(rf"^## {section}$.*?^```python\n(.*?)^```$", DOCS, re.DOTALL | re.MULTILINE)[1]


def test_a_data_set(monkeypatch):
    monkeypatch.setattr(base.DATASETS, "_entries", dict(base.DATASETS._entries))
    monkeypatch.setattr(base.DATASETS, "options", dict(base.DATASETS.options))
    code = example("A data set")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(code, {**vars(base), "Annotated": Annotated, "Tuple": Tuple, "np": np, "Field": Field})
    cfg = Config.model_validate(
        {
            "name": "a",
            "scale": "smoke",
            "model": {"name": "cifar_resnet20_v1"},
            "data": {"name": "stripes", "n_images": 100, "input": [3, 8, 8]},
            "train": {"epochs": 1},
        }
    )
    found = datasets.load(cfg.data)
    assert found.classes == ("lying", "standing") and cfg.data.known_size() == (2, 100)
    assert (len(found.train), len(found.validation), len(found.test)) == (90, 10, 50)
    x, y, _ = next(found.train.batches(90, seed=0))
    assert all((image[0, 0] == image[0, 0, 0]).all() == (label == 0) for image, label in zip(x, y))
    other = cfg.model_copy(update={"data": datasets.options(name="stripes", input=(3, 8, 8))})
    assert other.fingerprint() != cfg.fingerprint()
