"""The story of one experiment: config -> data -> dense network -> small network -> fine-tuning -> record."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Callable, Iterable, Iterator, List, Optional, Sequence, Tuple

from gcp import runtime, storage
from gcp.backend import clock, export
from gcp.backend.blocks import to_block
from gcp.backend.files import is_saved, load
from gcp.backend.zoo import open_network
from gcp.cost import latency, sampling
from gcp.cost.analytic import macs, params
from gcp.cost.base import Budget
from gcp.data.datasets import Data, Dataset
from gcp.data.datasets import load as open_data
from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.experiment.config import Config, Prune
from gcp.graph.network import Network, with_zero_residuals
from gcp.methods.base import METHODS, Problem
from gcp.seeds import Stream
from gcp.train import checkpoints, losses, optimisers, schedules
from gcp.train.distributed import check_gpus, process_group
from gcp.train.loop import Batches, fit
from gcp.train.options import Recipe
from gcp.train.steps import MixedStep, OrdinaryStep
from gcp.train.tasks import CLASSIFICATION

DENSE, PRUNED, FINAL = "dense", "pruned", "final"
SHOWN = 10  # skipped images that are named


def run(cfg: Config) -> dict:
    """Run an experiment, or go on with it; returns its record. A finished one is not run again.

    The record's throughputs are left empty: `measure_speed` fills them in when the machine is quiet. Of several
    workers, worker 0 has the run's folder and the record; the others' folders vanish.
    """
    check_gpus(cfg.gpus)
    if cfg.tensorboard:
        records.check_tensorboard()
    group = process_group()
    with group.output(cfg.output) as output, records.open_run(cfg.model_copy(update={"output": output})) as folder:
        cfg = cfg.model_copy(update={"output": output})
        if group.broadcast(lambda: folder.done):
            return folder.record
        data = load_data(cfg.data, cfg.seed)
        budget, start = plan(cfg, data)
        check_training(cfg, data)
        dense, dense_facts = dense_network(cfg, data, start)
        net, pruned_facts = checkpoints.run_once(
            folder.path / PRUNED, lambda checkpoint: prune(dense, budget, data, cfg, folder)
        )
        tuned, tuned_facts = checkpoints.run_once(
            folder.path / FINAL,
            lambda checkpoint: train(net, data, cfg, cfg.finetune, 2, checkpoint, folder.log, dense),
        )
        stages = {DENSE: (dense, dense_facts), PRUNED: (net, pruned_facts), FINAL: (tuned, tuned_facts)}
        described = {name: {**_measure(n, data), "throughput": None, **facts} for name, (n, facts) in stages.items()}
        folder.finish(_record(cfg, data, budget, stages, described))
        return folder.record


def measure_speed(cfg: Config) -> dict:
    """Measure the throughput of a finished experiment's dense and final network, in turn, into its record.

    Not measured again where the record has it, nor where the networks are not at hand (records travel without them).
    """
    with records.open_run(cfg) as folder:
        record, prefixes = folder.record, {DENSE: _dense_prefix(cfg), FINAL: folder.path / FINAL}
        if record["stages"][FINAL]["throughput"] is None and all(is_saved(str(p)) for p in prefixes.values()):
            nets = [load(p) for p in prefixes.values()]
            speeds = clock.throughputs(nets, cfg.throughput.batch, cfg.throughput.repeats)
            for name, speed in zip(prefixes, speeds):
                record["stages"][name]["throughput"] = speed
            record["latency_kept"] = speeds[1]["latency_s"] / speeds[0]["latency_s"]
            if cfg.prune.counted == "latency":  # in the model's setup, which need not be that of the throughput
                setup = clock.Setup(**latency_model(cfg, nets[0]).header["setup"])
                if setup != clock.Setup(batch=cfg.throughput.batch):
                    whole, small = clock.measure(nets, setup, cfg.throughput.repeats)
                    record["latency_kept"] = small["latency_s"] / whole["latency_s"]
            folder.finish(record)
        return folder.record


def record_path(cfg: Config) -> Path:
    """Where the experiment's record is, or will be."""
    return records.run_path(cfg) / records.RECORD


def evaluate(name: str, data: Data, pretrained: bool = False, batch: int = 64, repeats: int = 20) -> dict:
    """Test accuracy, cost and speed of a saved network, or of a GluonCV network with its published weights."""
    net, images = open_for(name, data, pretrained)
    return {"network": name, **_measure(net, images), "throughput": clock.throughputs([net], batch, repeats)[0]}


def open_for(name: str, data: Data, pretrained: bool = False) -> Tuple[Network, Dataset]:
    """A network with weights and a data set of as many classes. UserError: one is not there, or they do not fit."""
    with_weights(name, pretrained)
    images = load_data(data)
    net = open_network(name, images.shape, None if pretrained else len(images.classes), pretrained)
    if net.n_classes != len(images.classes):
        raise UserError(f"network '{name}' has {net.n_classes} classes, data '{data.name}' has {len(images.classes)}")
    return net, images


def with_weights(name: str, pretrained: bool) -> None:
    """UserError for a GluonCV name without its published weights: there would be nothing but random numbers in it."""
    if not pretrained and not is_saved(name):
        raise UserError(
            f"'{name}' is no saved network (no file '{name}-symbol.json'); give the path prefix of one, "
            "or a GluonCV name with --pretrained"
        )


def quantize(
    names: Sequence[str],
    prefixes: Sequence[str],
    data: Data,
    pretrained: bool = False,
    n_images: int = 2000,
    batch: int = 64,
    repeats: int = 20,
) -> List[dict]:
    """Write the int8 form of each network; accuracy on the test set and speed of all of them, all timed in turns.

    Calibrated on `n_images` of the training images. Per network: what stayed in float32, accuracy, speed and bytes of
    the arrays of both forms, and their speeds over the first network's in float32.
    """
    rows, blocks = [], []
    for name, prefix in zip(names, prefixes):
        net, images = open_for(name, data, pretrained)
        n_images = min(n_images, len(images.train))
        shuffled = images.train.batches(min(batch, n_images), seed=0)
        export.save_quantized(export.quantized(net, _first(shuffled, n_images)), prefix)
        forms = {"float32": to_block(net, trainable=set()), "int8": export.load_quantized(prefix)}
        in_int8, in_float32 = export.layers(forms["int8"])
        rows.append(
            {
                "network": name,
                "prefix": str(prefix),
                "macs": int(macs(net)(net.widths)),
                "params": int(params(net)(net.widths)),
                "n_calibration": n_images,
                "n_layers_int8": len(in_int8),
                "layers_float32": in_float32,
            }
        )
        for form, block in forms.items():
            rows[-1][form] = {
                **CLASSIFICATION.evaluate(export.outputs(block), images.test, batch),
                "bytes": sum(p.data().asnumpy().nbytes for p in block.collect_params().values()),
            }
            blocks.append(block)
    x, _, _ = next(images.test.batches(batch))
    speeds = clock.timed([clock.forward(block, x) for block in blocks], repeats)
    forms = [row[form] for row in rows for form in ("float32", "int8")]
    for form, speed in zip(forms, speeds):
        form.update(
            {
                **speed,
                "images_per_second": batch / speed["latency_s"],
                "batch": batch,
                "device": "cpu",
                "threads": runtime.n_threads(),
                "times_first": speeds[0]["latency_s"] / speed["latency_s"],
            }
        )
    return rows


def load_data(cfg: Data, seed: int = 0) -> Dataset:
    """The configured data set; says on stderr what had to be left out of it."""
    data = open_data(cfg, seed)
    for why in data.skipped[:SHOWN]:
        print(f"warning: skipped: {why}", file=sys.stderr)
    if data.skipped:
        print(f"warning: {len(data.skipped)} images of data '{cfg.name}' skipped in all", file=sys.stderr)
    return data


def plan(cfg: Config, data: Dataset) -> Tuple[Budget, Network]:
    """The untrained network and the budget; UserError where the target cannot be reached, before anything is run."""
    if cfg.model.is_pattern:
        source = cfg.paper.starts_from
        raise UserError(
            f"model.name: no saved network fits '{cfg.model.name}' (seed {cfg.seed}); "
            + (
                f"make it first: python scripts/run.py {source} --set seed={cfg.seed} (and the same --overlay, if any)"
                if source
                else "finish the run that makes it first"
            )
        )
    start = checkpoints.same_network(
        lambda: open_network(
            cfg.model.name,
            data.shape,
            len(data.classes),
            cfg.model.pretrained,
            cfg.seed,
            cfg.model.weights,
            cfg.model.new_head,
        )
    )
    if cfg.train.last_gamma_zero:
        start = with_zero_residuals(start)
    budget = budget_of(cfg, start, latency_model(cfg, start) if cfg.prune.latency_model else None)
    if cfg.prune.options.PRUNES:
        budget.check(start.widths)
    return budget, start


def budget_of(cfg: Config, start: Network, table: Optional[latency.Table] = None) -> Budget:
    """What the configured target means for a network; `table` is the latency model, where the config names one."""
    how, costs = cfg.prune, {"macs": macs(start), "params": params(start)}
    if table is not None:
        costs["latency"] = table.cost(start)
    cost, timed = costs[how.counted], how.counted == "latency"
    original = cost(start.widths)
    return Budget(
        cost,
        original,
        _target(how, table) if timed else how.target,
        table.steps.granularity if how.round_to is None else how.round_to,
        None if how.budget is None else costs[how.objective],
        _clock(start, table, original) if timed else None,
    )


def _target(how: Prune, table: latency.Table) -> float:
    """The fraction of the whole network's latency that was asked for, as such, in milliseconds or by throughput."""
    whole_s, batch = table.header["reference_s"], table.header["setup"]["batch"]
    if how.target_ms is None and how.target_images_per_second is None:
        return how.target
    asked_s = how.target_ms / 1e3 if how.target_ms else batch / how.target_images_per_second
    if asked_s > whole_s:
        raise UserError(
            f"prune: {1e3 * asked_s:.4g} ms is more than the {1e3 * whole_s:.4g} ms that the whole network "
            "takes; ask for less"
        )
    return asked_s / whole_s


def _clock(start: Network, table: latency.Table, original: float) -> Callable[[Network], float]:
    """A network's measured latency in the model's units: relative to the whole network's, timed in turns with it."""
    setup = clock.Setup(**table.header["setup"])

    def measure(net: Network) -> float:
        def share() -> float:
            small, whole = clock.measure([net, start], setup, attempts=10)  # widths depend on it: wait for calm
            return small["latency_s"] / whole["latency_s"]

        return process_group().broadcast(share) * original

    return measure


def latency_model(cfg: Config, start: Network) -> latency.Table:
    """The configured model. UserError: it is about another network, data size, processor or number of threads."""
    table = latency.load(Path(cfg.prune.latency_model))
    ours = {
        "network": start.name,
        "input": list(start.input_shape),
        "classes": start.n_classes,
        "sizes": start.widths,
        "setup": {**table.header["setup"], "threads": cfg.n_threads},
        "hardware": clock.hardware(),
    }
    apart = sampling.same_subject(table.header, ours)
    if apart:
        raise UserError(
            f"prune.latency_model: '{cfg.prune.latency_model}' does not fit the experiment ({apart}); "
            "sample and fit one for it with scripts/latency.py"
        )
    return table


def dense_network(cfg: Config, data: Dataset, start: Network) -> Tuple[Network, dict]:
    """The trained network that pruning starts from, shared by all experiments with the same dense fingerprint."""
    prefix = _dense_prefix(cfg)
    with storage.turn(prefix.parent):  # another experiment may be training it: then wait, and read it
        with records.Log(prefix.parent / "log.jsonl", cfg.tensorboard) as log:
            return checkpoints.run_once(
                prefix, lambda checkpoint: train(start, data, cfg, cfg.train, 0, checkpoint, log.add)
            )


def _dense_prefix(cfg: Config) -> Path:
    return Path(cfg.output) / f"dense-seed{cfg.seed}-{cfg.dense_fingerprint()}" / DENSE


def prune(net: Network, budget: Budget, data: Dataset, cfg: Config, folder) -> Tuple[Network, dict]:
    """The configured method's small network, and what it took."""
    began = time.monotonic()
    problem = Problem(net, budget, data, cfg.seed, cfg.data.batch, cfg.data.augment)
    outcome = METHODS[cfg.prune.method](problem, cfg.prune.options, folder)
    images = sum(outcome.images.values())
    return outcome.network, {
        "iterations": outcome.history,
        "images": images,
        "epochs": images / len(data.train),
        "seconds": time.monotonic() - began,
    }


def check_training(cfg: Config, data: Dataset) -> None:
    """UserError where a teacher is not there or does not fit, or the device cannot train as it should."""
    for how in (cfg.train, cfg.finetune):
        optimisers.check_dtype(how.dtype)
        if how.teacher != "dense":
            teacher(how, data)


def teacher(how: Recipe, data: Dataset, dense: Optional[Network] = None) -> Optional[losses.Teacher]:
    """The recipe's teacher, if it has one. UserError: there is no such network, or it knows other classes."""
    if how.teacher is None:
        return None
    net = dense
    if how.teacher != "dense":
        net = open_network(how.teacher, data.shape, None, pretrained=not is_saved(how.teacher))
    if net.n_classes != len(data.classes):
        raise UserError(
            f"teacher: '{how.teacher}' has {net.n_classes} classes, data '{data.name}' has "
            f"{len(data.classes)}; name a network that was trained on these data"
        )
    return losses.Teacher(net, how.teacher_weight, how.teacher_temperature)


def train(
    net: Network,
    data: Dataset,
    cfg: Config,
    how: Recipe,
    phase: int,
    checkpoint: Path,
    log: Callable[..., None],
    dense: Optional[Network] = None,
) -> Tuple[Network, dict]:
    """All weights trained by a recipe, which is the same for dense networks and for every method's small ones.

    `log(event, **values)` gets a line an epoch, and one at the end; `dense` is what `teacher: dense` means.
    """
    began, batch = time.monotonic(), cfg.data.batch
    per_epoch, epochs = data.train.n_batches(batch), how.all_epochs
    stage = DENSE if phase == 0 else FINAL
    loss: Optional[float] = None
    if epochs:
        half, seed = how.dtype == "float16", (Stream.DENSE if phase == 0 else Stream.FINETUNE).seed(cfg.seed)
        objective = losses.Objective(CLASSIFICATION, how.label_smoothing, how.mixup, teacher(how, data, dense))
        optimiser = optimisers.MixedSGD if half else optimisers.SGD
        step = (MixedStep if half else OrdinaryStep)(
            net, objective, lambda block: optimiser(block, how.momentum, how.wd, how.nesterov), seed
        )
        loss = fit(
            step,
            Batches(data.train, batch, seed, cfg.data.augment),
            schedule(how, per_epoch),
            name="train" if phase == 0 else "fine-tune",
            checkpoint=checkpoint,
            log=lambda **facts: log("epoch", stage=stage, **facts),
        )
        net = step.network()
    validation = CLASSIFICATION.evaluate(net, data.validation)
    facts = {
        "epochs": epochs,
        "images": epochs * per_epoch * batch,
        "training_loss": loss,
        "validation_loss": validation["loss"],
        "validation_top1": validation["top1"],
        "threads": runtime.n_threads(),
        "seconds": time.monotonic() - began,
    }
    log("stage", stage=stage, step=epochs * per_epoch, **facts)
    return net, facts


def schedule(how: Recipe, per_epoch: int) -> schedules.Schedule:
    """The recipe's learning rate by step, with `per_epoch` steps an epoch."""
    n_steps, n_warmup = how.all_epochs * per_epoch, round(how.warmup_epochs * per_epoch)
    if how.schedule == "step":
        return schedules.steps(how.lr, n_steps, [n * per_epoch for n in how.step_epochs], how.step_factor, n_warmup)
    return schedules.cosine(how.lr, n_steps, n_warmup)


def _first(batches: Iterable, n: int) -> Iterator:
    """The batches' first `n` images."""
    for x, y, n_valid in batches:
        yield x, y, min(n, n_valid)
        n -= n_valid
        if n <= 0:
            return


def _measure(net: Network, data: Dataset) -> dict:
    """Accuracy on the test set, and cost."""
    return {
        **CLASSIFICATION.evaluate(net, data.test),
        "macs": int(macs(net)(net.widths)),
        "params": int(params(net)(net.widths)),
    }


def _record(cfg: Config, data: Dataset, budget: Budget, stages: dict, described: dict) -> dict:
    dense, pruned, final = (described[name] for name in (DENSE, PRUNED, FINAL))
    return {
        "fingerprint": cfg.fingerprint(),
        "name": cfg.name,
        "scale": cfg.scale,
        "seed": cfg.seed,
        "config": cfg.model_dump(mode="json"),
        **runtime.environment(clock.default_device()),
        "model": stages[DENSE][0].name,
        "data": cfg.data.name,
        "method": cfg.prune.method,
        "objective": cfg.prune.objective,
        "target": budget.target,
        "round_to": budget.round_to,
        "stages": described,
        "macs_kept": final["macs"] / dense["macs"],
        "params_kept": final["params"] / dense["params"],
        "cost_predicted": budget.cost(stages[FINAL][0].widths) / budget.original,
        "latency_kept": None,
        "widths": {DENSE: stages[DENSE][0].widths, FINAL: stages[FINAL][0].widths},
        "iterations": pruned.pop("iterations"),
        "images_before_finetune": pruned["images"],
        "images_total": pruned["images"] + final["images"],
        "images_skipped": len(data.skipped),
        "seconds": pruned["seconds"] + final["seconds"],
    }
