"""One experiment from start to end: config -> data -> dense network -> pruned network -> fine-tuning -> record."""

from __future__ import annotations

import time
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

from gcp import runtime, storage
from gcp.backend import clock
from gcp.cost.analytic import macs, params
from gcp.cost.base import Budget
from gcp.cost.memory import peak_memory
from gcp.data.base import Dataset
from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.experiment.config import Config
from gcp.experiment.log import Log, check_tensorboard
from gcp.experiment.plan import beyond_epochs, load_data, plan, teacher
from gcp.experiment.record import Record, Run, open_run
from gcp.graph.network import Network
from gcp.graph.surgery import redrawn
from gcp.methods.base import METHODS, Problem
from gcp.seeds import Stream
from gcp.train import losses, schedules
from gcp.train.checkpoints import run_once
from gcp.train.distributed import check_gpus, process_group
from gcp.train.loop import Batches, fit
from gcp.train.optimisers import SGD, DivergedError, MixedSGD
from gcp.train.options import Recipe
from gcp.train.steps import MixedStep, OrdinaryStep
from gcp.train.tasks import TASKS

Stage = Tuple[Network, Dict[str, Any]]  # a network and facts about how it was made
Report = Callable[[int, Optional[float]], None]
DENSE, PRUNED, FINAL = "dense", "pruned", "final"


def run(cfg: Config) -> Record:
    """Run an experiment, or resume it; a finished one is not run again.

    With several ranks, rank 0 has the run's folder and the record; the folders of the others are temporary. Speeds are
    measured later, when the machine is idle (`measure.measure_speed`).
    """
    check_gpus(cfg.gpus)
    if cfg.tensorboard:
        check_tensorboard()
    if records.run_path(cfg) == dense_prefix(cfg).parent:
        taken = f"{cfg.name} is the name of the folder of this experiment's dense network"
        raise UserError(f"name: {taken}; choose another name", "config.name")
    group = process_group()
    with group.output(cfg.output) as output, open_run(cfg.model_copy(update={"output": output})) as folder:
        cfg = cfg.model_copy(update={"output": output})
        if group.broadcast(lambda: folder.done):
            return folder.record
        if cfg.search.trials:
            from gcp.search import tuning  # Optuna takes a second to load

            group.broadcast(lambda: tuning.check(cfg.search))
        data = load_data(cfg.data, cfg.seed)
        start, budget = plan(cfg, data)
        data = TASKS[data.task].labelled(data, start)
        dense = dense_network(cfg, data, start)
        pruned, final = (searched if cfg.search.per_run else small_networks)(cfg, data, dense[0], budget, folder)
        return finish(folder, cfg, data, budget, {DENSE: dense, PRUNED: pruned, FINAL: final})


def dense_prefix(cfg: Config) -> Path:
    """The prefix of the saved dense network, shared by all experiments with the same dense fingerprint."""
    return records.dense_path(cfg) / DENSE


def dense_network(cfg: Config, data: Dataset, start: Network) -> Stage:
    """The trained network that pruning starts from. Waits while another experiment trains it."""
    prefix = dense_prefix(cfg)
    with storage.locked(prefix.parent), Log(prefix.parent / "log.jsonl", cfg.tensorboard) as log:
        return run_once(prefix, lambda path: train(start, data, cfg, cfg.train, Stream.DENSE, path, log.add))


def small_networks(
    cfg: Config,
    data: Dataset,
    dense: Network,
    budget: Budget,
    folder: Run,
    report: Optional[Report] = None,
    seen: Callable[[Dict[str, int]], None] = lambda images: None,
) -> Tuple[Stage, Stage]:
    """The pruned network and the fine-tuned one.

    `report` is passed to `train` for fine-tuning; `seen` is called with the images of pruning, by purpose, before it.
    """
    pruned = run_once(folder.path / PRUNED, lambda _: prune(cfg, data, dense, budget, folder))
    seen(pruned[1]["images_by_purpose"])

    def finetune(checkpoint: Path) -> Stage:
        net, taken = pruned[0], pruned[1]["images"] if cfg.finetune.includes_pruning else 0
        if cfg.finetune.from_scratch:
            net = redrawn(net, Stream.SCRATCH.seed(cfg.seed))
        return train(net, data, cfg, cfg.finetune, Stream.FINETUNE, checkpoint, folder.log, dense, taken, report)

    return pruned, run_once(folder.path / FINAL, finetune)


def searched(cfg: Config, data: Dataset, dense: Network, budget: Budget, folder: Run) -> Tuple[Stage, Stage]:
    """The networks of the best of several trials of pruning and fine-tuning; the images of all trials count."""
    from gcp.search.tuning import Trial

    def attempt(trial: Trial) -> Tuple[Tuple[Stage, Stage], float]:
        def report(step: int, loss: Optional[float]) -> None:
            trial.images["fine-tune"] = step * cfg.data.batch  # in case the trial ends here
            trial.report(step, loss)

        def seen(images: Dict[str, int]) -> None:
            trial.images = Counter(images)  # of pruning, in case fine-tuning does not end

        try:
            how = cfg.with_values(trial.values), data, dense, budget, trial
            pruned, final = small_networks(*how, trial.report and report, seen)
        except DivergedError as error:
            trial.images.pop("fine-tune", None)  # among those of the error
            trial.images["diverged"] = error.images or error.steps * cfg.data.batch
            raise
        trial.images = Counter({**pruned[1]["images_by_purpose"], "fine-tune": final[1]["images"]})
        if final[1]["validation_loss"] is None:
            raise DivergedError("the validation loss is not finite after fine-tuning")
        return (pruned, final), final[1]["validation_loss"]

    @lru_cache(maxsize=None)
    def found() -> Tuple[Stage, Stage]:
        ((net, facts), final), trial, study = tuner(cfg, folder).best(attempt)
        others = sum(row["images"] for row in study["trials"] if row["trial"] != trial.number)
        images = facts["images"] + others
        facts = {**facts, "images": images, "epochs": images / len(data.train), "searches": [study, *facts["searches"]]}
        facts["images_by_purpose"] = {**facts["images_by_purpose"], "search": others}
        return (net, facts), final

    return run_once(folder.path / PRUNED, lambda _: found()[0]), run_once(folder.path / FINAL, lambda _: found()[1])


def tuner(cfg: Config, folder: Run, prefix: str = "") -> Any:
    """The `Tuner` that runs the trials of the configured search; methods name their options without the `prefix`."""
    from gcp.search.tuning import Tuner

    space, first = (
        {k[len(prefix) :]: v for k, v in of.items()} for of in (cfg.search_space(), cfg.values(cfg.search.parameters))
    )
    return Tuner(cfg.search, space, first, cfg.seed, folder.path, folder.log, folder.shared)


def prune(cfg: Config, data: Dataset, dense: Network, budget: Budget, folder: Run) -> Stage:
    """The network pruned by the configured method, and its facts: history, images, searches, epochs and seconds."""
    began = time.monotonic()
    how = {key: getattr(cfg.prune, key) for key in ("statistics_images", "reconstruction_images", "moved")}
    how["task"] = data.task
    if cfg.search.per_iteration:
        how["tuner"] = tuner(cfg, folder, f"prune.{cfg.prune.method}.")
    problem = Problem(dense, budget, data, cfg.seed, cfg.data.batch, cfg.data.augment, **how)
    outcome = METHODS[cfg.prune.method](problem, cfg.prune.options, folder)
    images = sum(outcome.images.values())
    return outcome.network, {
        "history": outcome.history,
        "images_by_purpose": outcome.images,
        "searches": outcome.searches,
        "images": images,
        "epochs": images / len(data.train),
        "seconds": time.monotonic() - began,
    }


def train(
    net: Network,
    data: Dataset,
    cfg: Config,
    recipe: Recipe,
    stream: Stream,
    checkpoint: Path,
    log: Callable[..., None],
    dense: Optional[Network] = None,
    taken: int = 0,
    report: Optional[Report] = None,
) -> Stage:
    """Train all weights by a recipe, in the same way for dense networks and for every method's pruned ones.

    `log(event, **values)` is called after each epoch and once at the end; `dense` is the network that `teacher: dense`
    refers to; `taken` is the number of images deducted from the recipe's epochs; `report` is called with the steps and
    the validation loss after each epoch but the last, and may end the training.
    """
    began, batch, task = time.monotonic(), cfg.data.batch, TASKS[data.task]
    per_epoch, loss = data.train.n_batches(batch), None
    n_steps = recipe.all_epochs * per_epoch - -(-taken // batch)
    stage, name = (DENSE, "train") if stream is Stream.DENSE else (FINAL, "fine-tune")
    if n_steps < 0:
        raise beyond_epochs(cfg, taken, recipe.all_epochs * per_epoch * batch)
    if n_steps:
        seed = stream.seed(cfg.seed)
        objective = losses.Objective(task, recipe.label_smoothing, recipe.mixup, teacher(recipe, data, dense))
        kind, optimiser = (MixedStep, MixedSGD) if recipe.dtype == "float16" else (OrdinaryStep, SGD)
        step = kind(net, objective, lambda b: optimiser(b, recipe.momentum, recipe.wd, recipe.nesterov), seed)
        batches, rates = Batches(data.train, batch, seed, cfg.data.augment), schedule(recipe, per_epoch, n_steps)

        def say(**facts: Any) -> None:
            log("epoch", stage=stage, **facts)
            if report is not None and facts["step"] < n_steps:
                report(facts["step"], task.evaluate(step.outputs, data.validation)["loss"])

        loss = fit(step, batches, rates, name=name, checkpoint=checkpoint, log=say)
        net = step.network()
    validation = task.evaluate(net, data.validation)
    facts = {
        "epochs": n_steps / per_epoch,
        "images": n_steps * batch,
        "training_loss": loss,
        "validation_loss": validation["loss"],
        "validation_top1": validation["top1"],
        "validation_top5": validation["top5"],
        "n_validation": validation["n_eval"],
        "threads": runtime.n_threads(),
        "seconds": time.monotonic() - began,
    }
    log("stage", stage=stage, step=n_steps, **facts)
    return net, facts


def schedule(recipe: Recipe, per_epoch: int, n_steps: int) -> schedules.Schedule:
    """The recipe's learning rate by step, with `per_epoch` steps per epoch and `n_steps` in total.

    A training that is shorter than the recipe's epochs, because pruning took images, is a shorter form of the whole:
    its rate falls after the same fractions of its steps.
    """
    n_warmup = min(n_steps, round(recipe.warmup_epochs * per_epoch))
    if recipe.schedule == "step":
        at = [n * n_steps // recipe.all_epochs for n in recipe.step_epochs]
        return schedules.steps(recipe.lr, n_steps, at, recipe.step_factor, n_warmup)
    return schedules.cosine(recipe.lr, n_steps, n_warmup)


def finish(folder: Run, cfg: Config, data: Dataset, budget: Budget, stages: Dict[str, Stage]) -> Record:
    """Evaluate every stage's network on the test images and write the record."""
    described = {name: {**measured(net, data), **facts} for name, (net, facts) in stages.items()}
    keys = ("history", "images_by_purpose", "searches")
    history, images, searches = (described[PRUNED].pop(key, None) for key in keys)
    whole = records.whole(records.Stages, described, folder.path)
    return folder.finish(
        fingerprint=cfg.fingerprint(),
        name=cfg.name,
        scale=cfg.scale,
        seed=cfg.seed,
        config=cfg.model_dump(mode="json"),
        **runtime.environment(clock.default_device()),
        model=stages[DENSE][0].name,
        data=cfg.data.name,
        method=cfg.prune.method,
        objective=cfg.prune.objective,
        target=budget.target,
        round_to=budget.round_to,
        stages=described,
        cost_predicted=budget.of(stages[FINAL][0]) / budget.original,
        widths={
            **{name: stages[name][0].widths for name in (DENSE, FINAL)},
            "layers": records.layer_rows(stages[DENSE][0], stages[FINAL][0]),
        },
        history=history,
        images=images,
        searches=searches or [],
        images_skipped=len(data.skipped),
        seconds=whole.pruned.seconds + whole.final.seconds,
    )


def measured(net: Network, data: Dataset) -> Dict[str, Any]:
    """Accuracy on the test images (fractions), and costs."""
    costs = {"macs": macs, "params": params, "memory": peak_memory}
    counts = {name: int(cost(net)(net.widths)) for name, cost in costs.items()}
    return {**TASKS[data.task].evaluate(net, data.test), **counts}
