"""Finished runs, made up: what the report room reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gcp.experiment.record import BudgetLatency, Finished, Record, Speed, Speeds, Timing

OPTIONS = {"gcp": {"score": "relative", "iterations": 4}, "uniform": {"criterion": "l1"}, "none": {}, "one_shot": {}}


def stage(top1, *, top5=0.99, n_eval=10_000, macs=1_000_000, params=1_000_000, epochs=0, images=0):
    facts = {"top1": top1, "top5": top5, "loss": 0.5, "n_eval": n_eval, "macs": int(macs), "params": int(params)}
    return {**facts, "epochs": epochs, "images": images, "seconds": 1.0}


def timing(images_per_second, noisy=False):
    return Timing(latency_s=64 / images_per_second, images_per_second=images_per_second, noisy=noisy)


def finished(
    method="gcp",
    objective="macs",
    target=0.05,
    seed=0,
    top1=0.9,
    *,
    dense_top1=0.92,
    speeds=(1000.0, 2000.0),
    macs_kept=None,
    params_kept=0.25,
    scale="reduced",
    data="fashion_mnist",
    model="resnet18_v1b",
    starts_from=None,
    paper=(None, 0),
    train=None,
    finetune=None,
    budget=None,
    round_to=1,
    n_eval=10_000,
    latency=None,
    dense_s=None,
    noisy=False,
    device="cpu",
    gpu=None,
    top5_above=None,
    name="run",
    pruned_top1=0.5,
    **options,
):
    """A run of a three-group network; `speeds` are the dense and the final network's images per second, or None.

    `latency`: the fraction kept in the latency model's setup, and the processor (its model, the GPU) that measured it;
    `dense_s`: what the dense network took there.
    `top5_above`: how far top-5 lies above top-1, where it is not 0.99. `options` are the method's own.
    """
    macs_kept = target if macs_kept is None else macs_kept
    config = {
        "scale": scale,
        "seed": seed,
        "threads": 1,
        "model": {"name": starts_from or model},
        "data": {"name": data, "input": [3, 224, 224]},
        "train": {"epochs": 20, **(train or {})},
        "finetune": {"epochs": 10, "extra_epochs": 0, **(finetune or {})},
        "paper": {"table": paper[0], "level": paper[1]},
        "prune": {"method": method, "objective": objective, "budget": budget, "target": target, **OPTIONS},
    }
    config["prune"] = {**config["prune"], method: {**OPTIONS[method], **options}}
    dense_top5, top5 = (0.99 if top5_above is None else a + top5_above for a in (dense_top1, top1))
    record = Record.model_validate(
        {
            "fingerprint": hashlib.sha256(json.dumps([config, model, device, name]).encode()).hexdigest()[:12],
            "name": name,
            "scale": scale,
            "seed": seed,
            "config": config,
            "git_commit": None,
            "versions": {},
            "device": {"name": device, "cpu": "Test CPU", "cpu_model": "model 1", "gpu": gpu, "threads": 2},
            "date": "",
            "model": model,
            "data": data,
            "method": method,
            "objective": objective,
            "target": target,
            "round_to": round_to,
            "stages": {
                "dense": stage(dense_top1, top5=dense_top5, epochs=20, images=600_000, n_eval=n_eval),
                "pruned": stage(pruned_top1, n_eval=n_eval),
                "final": stage(
                    top1,
                    top5=top5,
                    macs=round(1e6 * macs_kept),
                    params=round(1e6 * params_kept),
                    epochs=10,
                    images=300_000,
                    n_eval=n_eval,
                ),
            },
            "widths": {
                "dense": {"conv0": 64, "stage2": 128, "stage1": 64},
                "final": {"conv0": 8, "stage2": 64, "stage1": 16},
            },
            "history": [],
            "images": {"regularise": 30_000, "recover": 10_000} if method == "gcp" else {},
            "seconds": 10.0,
        }
    )
    if speeds is None:
        return Finished(Path("run"), record, None)
    setup = {"runtime": "mxnet", "device": device, "dtype": "float32", "batch": 64, "threads": 2}
    throughput = Speed(
        setup=setup, hardware={"cpu": "Test CPU"}, dense=timing(speeds[0]), final=timing(speeds[1], noisy)
    )
    kept = latency and BudgetLatency(
        setup=setup,
        hardware=dict(zip(("cpu", "cpu_model", "gpu"), latency[1:])),
        kept=latency[0],
        noisy=noisy,
        dense_s=dense_s,
    )
    return Finished(Path("run"), record, Speeds(throughput=throughput, budget=kept))


def saved(folder: Path, runs: list[Finished]) -> Path:
    """The runs as files, each in a folder of its own."""
    for i, run in enumerate(runs):
        path = folder / f"run{i:02d}"
        path.mkdir(parents=True)
        (path / "record.json").write_text(run.record.model_dump_json(), encoding="utf-8")
        if run.speeds:
            (path / "speed.json").write_text(run.speeds.model_dump_json(), encoding="utf-8")
    return folder


def rows_of(markdown: str) -> list[dict[str, str]]:
    """The rows of a Markdown table."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line)) for line in lines[2:]]
