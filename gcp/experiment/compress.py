"""Compress one network, for users who want the network rather than an experiment: a single experiment with defaults.

The experiment's folder lies beside the result, so that a killed run can be resumed like any other.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, ContextManager, Dict, Iterator, Optional, Sequence

from pydantic import ValidationError

from gcp import runtime
from gcp.backend import clock, export, files
from gcp.backend.zoo import open_network
from gcp.cost import latency, sampling
from gcp.cost.analytic import macs, params
from gcp.data.datasets import Data
from gcp.errors import UserError
from gcp.experiment.config import Config
from gcp.experiment.measure import measure_speed, with_weights
from gcp.experiment.plan import load_data, plan, warn
from gcp.experiment.record import Finished
from gcp.experiment.run import FINAL, run
from gcp.graph.network import Network
from gcp.graph.surgery import resized
from gcp.methods.base import METHODS, Problem
from gcp.options import explained
from gcp.train.tasks import TASKS

DENSE_EPOCHS = 5  # of the dense network: by default, training takes as long as these
MOST_EPOCHS = 50
PRUNING_EPOCHS = 1.0  # at most so many of the epochs go into GCP's iterations; the rest are fine-tuning
FITTED_IMAGES = 512  # for recomputing statistics or, without training, for fitting weights
# Chosen by the validation accuracy of ResNet-18 and MobileNet 0.5 on Fashion-MNIST, at 70 to 10 % of the MACs.
ONE_SHOT = {"criterion": "taylor", "allocation": "uniform"}
SAMPLED_NETWORKS = 100  # timed to fit a latency model

Bar = Callable[[str], ContextManager[Callable[[int, int], None]]]


@dataclass(frozen=True)
class Job:
    """A compression job: the network and the data, the fraction `target` of a cost to keep, and the output prefix.

    `data` names a data set and its options. `epochs` is None for the default, 0 for no training at all. `round_to` is
    None for 8 or, where the cost is latency, for the granularity that the latency model found. Latencies are those of
    batches of `timed_batch` images. `bar(name)` shows progress while networks are timed.
    """

    network: str
    data: Data
    target: float
    out: str
    cost: str = "macs"
    epochs: Optional[int] = None
    pretrained: bool = False
    threads: int = 0
    seed: int = 0
    lr: float = 0.01
    round_to: Optional[int] = None
    timed_batch: int = 1
    bar: Bar = lambda name: nullcontext(lambda done, n: None)

    @property
    def folder(self) -> Path:
        """The folder of the experiment."""
        return Path(f"{self.out}-run")

    @property
    def n_epochs(self) -> int:
        """The number of epochs, by default as many as take the time of `DENSE_EPOCHS` dense ones, up to `MOST_EPOCHS`:
        an epoch of the smaller network takes about `target` of a dense one's time."""
        return min(MOST_EPOCHS, round(DENSE_EPOCHS / self.target)) if self.epochs is None else self.epochs


def compress(job: Job) -> Finished:
    """Prune, train, evaluate and time; writes `<out>.onnx` and the saved network `<out>-symbol.json`, `-0000.params`.

    Finished steps are not computed again. UserError: the network or the data are missing or do not match, or the target
    cannot be reached.
    """
    cfg = configuration(job, _latency_model(job) if job.cost == "latency" else None)
    try:
        dense = run(cfg).stages.dense
    except UserError as error:
        if "prune.target" not in str(error):
            raise
        # The message names keys of a configuration, which users of the script have not seen.
        words = str(error).replace("prune.target", "--target").replace("prune.round_to", "--round-to")
        raise UserError(words, error.key) from error
    n_classes = cfg.data.known_size()[0]
    if cfg.data.LABELLED and dense.top1 < 1.5 / n_classes:
        warn(
            f"the original network is right on only {100 * dense.top1:.1f} % of the test images, as if guessing: are "
            "its classes those of the data, in this order, and were its training images normalised in the same way?"
        )
    finished = measure_speed(cfg)
    small = files.load(finished.path / FINAL)
    files.save(small, job.out)
    export.to_onnx(small, f"{job.out}.onnx")
    return finished


def configuration(job: Job, latency_model: Optional[Path] = None) -> Config:
    """The job as an experiment. UserError: a value is out of range, or the numbers of classes differ."""
    with_weights(job.network, job.pretrained)
    n_outputs = open_network(job.network, job.data.input, pretrained=job.pretrained).n_classes
    n_classes = job.data.known_size()[0]
    if n_outputs != n_classes:
        wrong = f"network '{job.network}' has {n_outputs} classes, but the data have {n_classes}"
        raise UserError(f"{wrong}; give images of the classes that it was trained on", "network.classes")
    pruning = min(PRUNING_EPOCHS, job.n_epochs / 2)
    per_phase = pruning / (2 * METHODS.options["gcp"]().iterations)
    prune = {
        "method": "gcp" if job.n_epochs else "one_shot",
        "objective": job.cost,
        "target": job.target,
        "gcp": {"regularise_epochs": per_phase or 1.0, "recover_epochs": per_phase},
        "one_shot": ONE_SHOT,
        # Fitted weights reproduce their previous outputs, so the statistics of all training images remain right.
        "statistics_images": FITTED_IMAGES if job.n_epochs else 0,
        "reconstruction_images": 0 if job.n_epochs else FITTED_IMAGES,
        **({} if latency_model is None else {"latency_model": str(latency_model), "round_to": "auto"}),
        **({} if job.round_to is None else {"round_to": job.round_to}),
    }
    unlabelled = {} if job.data.LABELLED else {"teacher": "dense", "teacher_weight": 1.0}
    epochs = max(1, round(job.n_epochs - pruning)) if job.n_epochs else 0
    values = {
        "name": "compress",
        "scale": "reduced",
        "seed": job.seed,
        "threads": job.threads,
        "output": str(job.folder),
        "model": {"name": job.network, "pretrained": job.pretrained},
        "data": job.data.model_dump(mode="json", exclude_defaults=True),
        "train": {"epochs": 0},
        "prune": prune,
        "finetune": {"epochs": epochs, "lr": job.lr, "warmup_epochs": min(0.5, epochs / 4), **unlabelled},
        "throughput": {"batch": job.timed_batch},
    }
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(explained(error), key="option.value") from None


def _latency_model(job: Job) -> Path:
    """The file of a latency model for this machine, batch and number of threads.

    If it is missing, it is fitted to timed networks of random widths.
    """
    net = open_network(job.network, job.data.input, job.data.known_size()[0], job.pretrained)
    setting = f"batch{job.timed_batch}-threads{runtime.n_threads(job.threads)}"
    samples, model = (job.folder / f"latency-{setting}{ending}" for ending in (".jsonl", ".json"))
    job.folder.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        setup, subject = clock.Setup(device=clock.default_device(), batch=job.timed_batch), resized(net, net.widths)
        measure, here = clock.against_reference(subject, setup, warn=warn), clock.hardware(setup.device)
        with job.bar("timing networks") as progress:
            held = sampling.sample(
                subject, samples, setup.as_json(), here, measure, SAMPLED_NETWORKS, progress=progress, warn=warn
            )
        latency.save(latency.fit(subject, held), model)
    return model


# ---- exploring ---------------------------------------------------------------------------------------------------


def explore(job: Job, targets: Sequence[float]) -> Iterator[Dict[str, Any]]:
    """Accuracy and costs at each target without any training: yields a row for the network itself, then one per target.

    `top1_statistics` is the accuracy with recomputed statistics, `top1_fitted` with weights fitted by least squares.
    Both are fractions of the validation images, since they serve to choose a target. Ends at the first target that
    cannot be reached.
    """
    cfg = configuration(replace(job, epochs=0, target=1.0), _latency_model(job) if job.cost == "latency" else None)
    data = load_data(cfg.data, cfg.seed)
    net, budget = plan(cfg, data)
    data = TASKS[data.task].labelled(data, net)
    run = SimpleNamespace(path=None, log=lambda event, **values: None)

    def top1(of: Network) -> float:
        return TASKS[data.task].evaluate(of, data.validation)["top1"]

    whole = {"target": 1.0, "top1_statistics": top1(net), "top1_fitted": top1(net), "seconds": 0.0}
    shared = {"network": job.network, "cost": job.cost, "n_eval": len(data.validation)}
    yield {**shared, **whole, "macs_kept": 1.0, "params_kept": 1.0, "cost_kept": 1.0}
    for target in targets:
        if budget.lowest(net.widths) > target:
            return
        began, row = time.monotonic(), {**shared, "target": target}
        how = {"task": data.task, "moved": cfg.prune.moved}
        for what, key in (("statistics", "statistics_images"), ("fitted", "reconstruction_images")):
            own = {key: FITTED_IMAGES, **how}
            problem = Problem(net, replace(budget, target=target), data, cfg.seed, cfg.data.batch, **own)
            small = METHODS["one_shot"](problem, cfg.prune.one_shot, run).network
            row[f"top1_{what}"] = top1(small)
        row |= {f"{cost.__name__}_kept": cost(small)(small.widths) / cost(net)(net.widths) for cost in (macs, params)}
        row["cost_kept"] = budget.cost(small.widths) / budget.original
        yield {**row, "seconds": time.monotonic() - began}
