"""Measure accuracy, cost and speed of networks: those of finished runs, and saved ones."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from gcp import runtime
from gcp.backend import clock, export
from gcp.backend.blocks import to_block
from gcp.backend.files import is_saved, load
from gcp.backend.zoo import open_network
from gcp.cost.analytic import macs, params
from gcp.cost.latency import FEATURES, LatencyModel, features
from gcp.cost.layers import Layer, Share, layers
from gcp.data.datasets import Data, Dataset
from gcp.errors import UserError
from gcp.experiment import config, record
from gcp.experiment.config import Config
from gcp.experiment.plan import PRECISION, latency_model, load_data, relative_latency, warn
from gcp.experiment.run import FINAL, dense_prefix, measured
from gcp.graph.channels import has_weight, layer_name
from gcp.graph.network import Network
from gcp.graph.surgery import resized
from gcp.storage import write_json
from gcp.train.tasks import TASKS

# Rounds in which `time_records` times networks whose target applies to a latency. On a shared host, measurements some
# minutes apart differ by more than their standard errors say.
ROUNDS = 3


def measure_speed(cfg: Config, n_rounds: Optional[int] = None) -> record.Finished:
    """Time a finished run's dense and final network alternately, and write `speed.json` beside its record.

    Nothing is measured if the file already has a measurement at the configured batch size, unless its latency is of
    fewer rounds than `n_rounds`: then one more is measured.
    """
    with record.open_run(cfg) as folder:
        speeds = record.read_speeds(folder.path)
        is_timed = record.is_timed(cfg)
        goes_on = is_timed and n_rounds is not None and _lacks_rounds(speeds, n_rounds)
        nets = [] if is_timed and not goes_on else _networks(cfg, folder)
        if nets:
            setup = clock.Setup(device=clock.default_device(), batch=cfg.throughput.batch)
            throughput = speeds.throughput if goes_on else _timed(nets, setup, cfg)
            budget = _budget_latency(nets, cfg)
            if budget is not None and n_rounds is not None:
                budget = _with_rounds(budget, (speeds.budget.rounds if goes_on else []) + [budget.kept])
            speeds = record.Speeds(throughput=throughput, budget=budget)
            write_json(folder.path / record.SPEED, speeds.model_dump(mode="json"))
        return record.Finished(folder.path, folder.record, speeds)


def _lacks_rounds(speeds: Optional[record.Speeds], n_rounds: int) -> bool:
    """Whether a run's latency has been measured in rounds, but in fewer than `n_rounds`."""
    rounds = None if speeds is None or speeds.budget is None else speeds.budget.rounds
    return rounds is not None and len(rounds) < n_rounds


def _with_rounds(budget: record.BudgetLatency, rounds: List[float]) -> record.BudgetLatency:
    """The mean of the rounds; if there are several, it is noisy if its standard error is above `PRECISION`."""
    mean = budget.model_copy(update={"kept": float(np.mean(rounds)), "rounds": rounds})
    return mean.model_copy(update={"noisy": budget.noisy if len(rounds) == 1 else mean.error > PRECISION})


def _networks(cfg: Config, folder: record.Run) -> List[Network]:
    """The dense and the final network of a finished run; empty if neither files nor the record define them.

    Records are often kept without their networks. For timing, the widths in the record are enough.
    """
    prefixes = (dense_prefix(cfg), folder.path / FINAL)
    if all(is_saved(str(prefix)) for prefix in prefixes):
        return [load(prefix) for prefix in prefixes]
    if cfg.model.is_pattern or is_saved(cfg.model.name):
        return []
    data, widths = cfg.data, folder.record.widths
    net = open_network(cfg.model.name, data.input, data.known_size()[0], weights=cfg.model.weights)
    if net.widths.keys() != widths.dense.keys() or widths.final.keys() != widths.dense.keys():
        return []
    return [resized(net, widths.dense), resized(net, widths.final)]


def time_records(folder: str, progress: Callable[[int, int], None]) -> None:
    """Time the networks of all finished runs below a folder that have not been timed, one run after another.

    Where the target applies to a latency, it is measured in `ROUNDS` rounds over all of these runs, so that what
    changes with time affects them alike. Runs with another number of threads than this process has are left out, and so
    are runs that were moved. Runs that cannot be timed here, such as those with a latency model of another processor,
    are reported on stderr.
    """
    todo = []
    for run in record.load_records(Path(folder)):
        untimed = run.speeds is None or _lacks_rounds(run.speeds, ROUNDS)
        if not untimed or not (run.path / "config.yaml").exists():
            continue
        try:
            cfg = config.load(run.path / "config.yaml")
            if record.run_path(cfg).resolve() == run.path.resolve() and cfg.threads in (0, runtime.n_threads()):
                todo.append(cfg)
        except UserError as error:
            warn(f"{run.path} was not timed: {error}")
    done, n = 0, sum(ROUNDS if cfg.prune.is_timed else 1 for cfg in todo)
    for n_rounds in range(1, ROUNDS + 1):
        for cfg in list(todo):
            try:
                measure_speed(cfg, n_rounds)
                done += 1
            except UserError as error:
                warn(f"{cfg.name} seed {cfg.seed} was not timed: {error}")
                todo.remove(cfg)
                done += 1 + (ROUNDS - n_rounds) * cfg.prune.is_timed
            progress(done, n)
        todo = [cfg for cfg in todo if cfg.prune.is_timed]


def predicted(runs: Iterable[record.Finished], model: LatencyModel) -> Dict[str, Dict[str, Share]]:
    """Where the networks of finished runs spend their time, by a latency model: per fingerprint and per output size,
    such as "16x16", from the image to the output, the `Share` of the layers with outputs of this size, as fractions of
    the whole original network. UserError: no run is of the model's network."""
    net = open_network(model.network, model.input, model.classes)
    sides = {layer_name(node.name): net.shapes[i][0][2:] for i, node in enumerate(net.nodes) if has_weight(node)}
    places = [(layer, "x".join(map(str, sides[layer.name])) or "1x1") for layer in layers(net)]  # dense: one position

    def costs(layer: Layer, widths: Mapping[str, int]) -> Share:
        at = layer.widths(widths)
        return Share(float(features(layer, *at)[FEATURES.index("macs")]), model.layer(layer, *at))

    whole, found = [sum(each) for each in zip(*(costs(layer, net.widths) for layer, _ in places))], {}
    for run in runs:
        widths, size = run.record.widths.final, tuple(run.record.config["data"]["input"])
        if (run.record.model, size) != (model.network, tuple(model.input)) or widths.keys() != net.widths.keys():
            continue
        shares: Dict[str, Share] = {}
        for layer, place in places:
            so_far, more = shares.get(place, Share(0.0, 0.0)), costs(layer, widths)
            shares[place] = Share(*(a + b / total for a, b, total in zip(so_far, more, whole)))
        found[run.record.fingerprint] = shares
    if not found:
        wrong = f"no run is for {model.network} at {'x'.join(map(str, model.input))}, as the latency model is"
        raise UserError(f"{wrong}; give another model", "latency.network")
    return found


def _timed(nets: Sequence[Network], setup: clock.Setup, cfg: Config) -> record.Speed:
    dense, final = clock.measure(nets, setup, cfg.throughput.repeats)
    return record.Speed(setup=setup.as_json(), hardware=clock.hardware(setup.device), dense=dense, final=final)


def _budget_latency(nets: Sequence[Network], cfg: Config) -> record.BudgetLatency | None:
    """The fraction of latency kept, in the latency model's setup; None unless the target applies to latency."""
    if not cfg.prune.is_timed:
        return None
    setup = clock.Setup(**dict(latency_model(cfg, nets[0]).setup))
    found, hardware = relative_latency(*nets, setup), clock.hardware(setup.device)
    return record.BudgetLatency(
        setup=setup.as_json(), hardware=hardware, kept=found.kept, dense_s=found.whole_s, noisy=found.noisy
    )


def evaluate(name: str, data: Data, pretrained: bool = False, batch: int = 64, repeats: int = 20) -> dict:
    """Test accuracy, cost and speed of a saved network, or of a GluonCV network with its published weights."""
    net, images = open_for(name, data, pretrained)
    setup = clock.Setup(device=clock.default_device(), batch=batch)
    timing = clock.measure([net], setup, repeats)[0]
    return {"network": name, **measured(net, images), "throughput": {**timing, **setup.as_json()}}


def open_for(name: str, data: Data, pretrained: bool = False) -> Tuple[Network, Dataset]:
    """A network with weights and a data set with as many classes. UserError: one is missing, or they do not match."""
    with_weights(name, pretrained)
    images = load_data(data)
    net = open_network(name, images.shape, None if pretrained else len(images.classes), pretrained)
    if net.n_classes != len(images.classes):
        raise UserError(
            f"network '{name}' has {net.n_classes} classes, but data '{data.name}' has {len(images.classes)}"
        )
    return net, images


def with_weights(name: str, pretrained: bool) -> None:
    """Raise UserError for a GluonCV name without `pretrained`: its weights would be nothing but random numbers."""
    if not pretrained and not is_saved(name):
        fix = "give the path prefix of one, or a GluonCV name with --pretrained"
        raise UserError(f"'{name}' is not a saved network (no file '{name}-symbol.json'); {fix}", "network.absent")


def quantize(
    names: Sequence[str],
    prefixes: Sequence[str],
    data: Data,
    pretrained: bool = False,
    n_images: int = 2000,
    batch: int = 64,
    repeats: int = 20,
) -> List[dict]:
    """Write the int8 version of each network, and measure test accuracy and speed of all versions, timed alternately.

    Calibration uses `n_images` of the training images. Returns for each network the layers that stay in float32 and,
    for both versions, accuracy, speed, bytes of the arrays, and the speed relative to the first network in float32.
    """
    rows, blocks = [], []
    for name, prefix in zip(names, prefixes):
        net, images = open_for(name, data, pretrained)
        n_images = min(n_images, len(images.train))
        shuffled = images.train.batches(min(batch, n_images), seed=0)
        export.save_quantized(export.quantized(net, _first(shuffled, n_images)), prefix)
        forms = {"float32": to_block(net, trainable=set()), "int8": export.load_quantized(prefix)}
        in_int8, in_float32 = export.layers(forms["int8"])
        counts = {"macs": int(macs(net)(net.widths)), "params": int(params(net)(net.widths))}
        kept = {"n_calibration": n_images, "n_layers_int8": len(in_int8), "layers_float32": in_float32}
        rows.append({"network": name, "prefix": str(prefix), **counts, **kept})
        for form, block in forms.items():
            rows[-1][form] = {
                **TASKS[images.task].evaluate(export.outputs(block), images.test, batch),
                "bytes": sum(p.data().asnumpy().nbytes for p in block.collect_params().values()),
            }
            blocks.append(block)
    x, _, _ = next(images.test.batches(batch))
    speeds = clock.timed([clock.forward(block, x) for block in blocks], repeats)
    setup = {"batch": batch, "device": "cpu", "threads": runtime.n_threads()}
    for form, speed in zip((row[form] for row in rows for form in ("float32", "int8")), speeds):
        form.update(speed, images_per_second=batch / speed["latency_s"], **setup)
        form["times_first"] = speeds[0]["latency_s"] / speed["latency_s"]
    return rows


def _first(batches: Iterable, n: int) -> Iterator:
    """The first `n` images of the batches."""
    for x, y, n_valid in batches:
        yield x, y, min(n, n_valid)
        n -= n_valid
        if n <= 0:
            return
