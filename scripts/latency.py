"""Measure latencies on this machine, sample random widths, fit a per-layer model, validate it, and predict with it."""

import argparse
import json
import sys
from pathlib import Path

from gcp import command as command_line
from gcp import errors, runtime


def run(argv: list) -> None:
    """Parse the arguments and call the verb's function."""
    parser = command_line.Parser(description=__doc__)
    verb = command_line.verbs(parser)

    sub = verb("measure", measure, "time networks in turn (A B A B) on this machine")
    command_line.add_network(sub, many=True)
    add_setup(sub)
    sub.add_argument("--json", metavar="FILE", help="write the measurement to this file")

    sub = verb("sample", sample, "time networks of random widths, appending to FILE until it holds N")
    command_line.add_network(sub)
    add_setup(sub)
    sub.add_argument("--out", required=True, metavar="FILE", help="JSON-lines file; an existing one is continued")
    sub.add_argument(
        "--n", type=command_line.positive(int), default=250, help="total number of networks in the file (default 250)"
    )
    sub.add_argument("--seed", type=command_line.natural, default=0)
    add_space(sub)

    sub = verb("fit", fit, "fit a model to samples")
    sub.add_argument("samples", metavar="SAMPLES", help="a file written by `sample`")
    sub.add_argument("--out", required=True, metavar="MODEL", help="write the model to this file (JSON)")
    sub.add_argument("--skip-bad", action="store_true", help="leave out lines that are not complete measurements")

    sub = verb("validate", validate, "time networks that the model was not fitted to, and compare")
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument(
        "--held-out", required=True, metavar="FILE", help="JSON-lines file of the timings; an existing one is continued"
    )
    sub.add_argument(
        "--n", type=command_line.positive(int), default=40, help="total number of networks in that file (default 40)"
    )
    sub.add_argument(
        "--layers", metavar="FILE", help="also time every layer by itself, the usual alternative, and write this file"
    )
    sub.add_argument(
        "--again",
        metavar="FILE",
        help="also time these networks a second time, and write this file: the noise floor, since no model can predict "
        "better than a measurement repeats itself",
    )
    sub.add_argument("--out", metavar="PREFIX", help="write PREFIX.validation.json, .png and .svg")
    add_space(sub)
    sub.add_argument("--repeats", type=command_line.whole(1, 10**5), default=7)
    sub.add_argument(
        "--seed", type=command_line.natural, default=1, help="a seed other than that of the samples (default 1)"
    )

    sub = verb("predict", predict, "predict a network's latency with a model, without running it")
    sub.add_argument("model", metavar="MODEL")
    sub.add_argument("network", nargs="+", help="a GluonCV name, an ONNX file or the path prefix of a saved network")

    sub = verb("table", table, "write a table of all validations in a folder")
    sub.add_argument("folder", metavar="FOLDER", help="folder with *.validation.json files")
    args = parser.parse_args(argv)
    args.function(args)


def add_space(sub: argparse.ArgumentParser) -> None:
    """Add the option for a configuration whose blocks are drawn as well."""
    sub.add_argument(
        "--space",
        metavar="CONFIG",
        help="a configuration of method architecture, whose blocks, kernels and depth are drawn as well",
    )


def add_setup(sub: argparse.ArgumentParser) -> None:
    """Add the options for what a latency depends on besides the network."""
    sub.add_argument("--runtime", default="mxnet", help="mxnet (default), mxnet-int8 or onnxruntime")
    sub.add_argument("--device", default="cpu", help="cpu (default), gpu(0), ...")
    sub.add_argument("--dtype", help="data type (default: the runtime's own)")
    sub.add_argument("--batch", type=command_line.batch, default=1, help="images per forward pass (default 1)")
    sub.add_argument(
        "--threads",
        type=command_line.threads,
        default=0,
        help="CPU threads (default: OMP_NUM_THREADS, or one per physical core)",
    )
    sub.add_argument(
        "--repeats", type=command_line.whole(1, 10**5), default=7, help="minimum number of forward passes (default 7)"
    )


def measure(args: argparse.Namespace) -> None:
    """Time networks alternately, and print their latencies."""
    runtime.use_threads(args.threads)
    from gcp import storage
    from gcp.backend import clock
    from gcp.backend.zoo import open_network
    from gcp.cost.analytic import macs, params

    setup = _setup(args)
    nets = [open_network(name, args.input, args.classes, seed=0) for name in args.network]
    rows = [
        {"network": name, "input": list(net.input_shape), "macs": int(macs(net)(net.widths))}
        | {"params": int(params(net)(net.widths)), **row}
        for name, net, row in zip(args.network, nets, clock.measure(nets, setup, args.repeats, warn=_warn))
    ]
    if args.json:
        storage.write_json(args.json, {"setup": setup.as_json(), "hardware": clock.hardware(), "networks": rows})
    wide = max(len(name) for name in args.network)
    print(f"{setup} ({clock.hardware()['cpu']}), median of {rows[0]['n']}")
    for row in rows:
        print(
            f"{row['network']:<{wide}}  {1e3 * row['latency_s']:10.3f} ms  +- {100 * row['spread']:4.1f} %  "
            f"{row['images_per_second']:10,.1f} images/s  {rows[0]['latency_s'] / row['latency_s']:6.2f} x the first"
            + ("  NOISY" if row["noisy"] else "")
        )


def sample(args: argparse.Namespace) -> None:
    """Time networks of random widths."""
    runtime.use_threads(args.threads)
    from gcp.backend import clock
    from gcp.backend.zoo import open_network
    from gcp.cost import sampling
    from gcp.graph.surgery import resized

    net, setup = open_network(args.network, args.input, args.classes), _setup(args)
    net = resized(net, net.widths)  # made-up weights: with zeros, int8 would find no range
    sampled = _sampled(net, args.space)
    measured, here = clock.against_reference(net, setup, args.repeats, _warn), clock.hardware(args.device)
    with runtime.progress_bar(f"{net.name}, {setup}") as progress:
        held = sampling.sample(
            net,
            Path(args.out),
            setup.as_json(),
            here,
            measured,
            args.n,
            args.seed,
            progress=progress,
            warn=_warn,
            sampled=sampled,
        )
    print(
        f"{args.out}: {len(held.lines)} networks, {sum(line.noisy for line in held.lines)} of them noisy; "
        f"granularity {held.header.granularity} channels"
    )


def fit(args: argparse.Namespace) -> None:
    """Fit a model to samples."""
    from gcp.cost import latency, sampling

    samples = sampling.read_samples(Path(args.samples), args.skip_bad, _warn)
    net = _network_of(samples.header)
    model = latency.fit(net, samples, _sampled(net))
    latency.save(model, Path(args.out))
    print(
        f"{args.out}: fitted to {len(samples.lines)} networks; NRMSE {100 * model.held_out_nrmse:.1f} % on "
        f"the quarter that choices were based on; granularity {model.granularity} channels"
    )


def validate(args: argparse.Namespace) -> None:
    """Time networks that a model was not fitted to, and compare."""
    from gcp.cost import latency

    model = latency.load(Path(args.model))
    runtime.use_threads(model.setup.threads)
    from gcp import storage
    from gcp.backend import clock
    from gcp.cost import sampling
    from gcp.report import figures

    net, setup, here = _network_of(model), clock.Setup(**dict(model.setup)), clock.hardware(model.setup.device)
    apart = sampling.difference(model, sampling.Subject.of(net, setup.as_json(), here), _warn)
    if apart:
        raise errors.UserError(f"{args.model}: does not match this machine ({apart}); sample and fit here")
    measured, sampled = clock.against_reference(net, setup, args.repeats, warn=_warn), _sampled(net, args.space)

    def drawn(path: str, n: int, text: str):
        how = {"seed": args.seed, "slowdowns": model.slowdowns, "warn": _warn, "sampled": sampled}
        with runtime.progress_bar(f"{net.name}, {setup}{text}") as progress:
            return sampling.sample(net, Path(path), setup.as_json(), here, measured, n, progress=progress, **how)

    held = drawn(args.held_out, args.n, "")
    again = drawn(args.again, len(held.lines), ", again") if args.again else None
    alone = None
    if args.layers:
        with runtime.progress_bar("layers alone") as progress:
            networks = [(widths, line.decisions) for widths, line in zip(held.widths, held.lines)]
            alone = sampling.layers_alone(sampled, networks, Path(args.layers), measured, progress)
    result = latency.validate(model, net, held, alone, again, sampled)
    if args.out:
        storage.write_json(f"{args.out}.validation.json", result.model_dump(mode="json"))
    print(
        f"{net.name}, {setup}: {len(held.lines)} networks of {result.span[0]:.2f} to {result.span[1]:.2f} "
        f"times the network's own {1e3 * result.reference_s:.3f} ms"
    )
    for name, good in result.quality.items():
        print(
            f"{name:<18}  RMSE {1e3 * good.rmse_s:8.3f} ms  NRMSE {100 * good.nrmse:6.2f} %  "
            f"Kendall's tau {'-' if good.tau is None else f'{good.tau:.3f}'}  "
            f"within 5 % {100 * good.within_5:5.1f} %  within 10 % {100 * good.within_10:5.1f} %"
        )
    if args.out:
        for path in figures.save(figures.predictions(result), Path(f"{args.out}.validation")):
            print(path)


def table(args: argparse.Namespace) -> None:
    """Write the table of all validations."""
    from gcp.report import tables

    for path in tables.write_validations(Path(args.folder)):
        print(path)


def predict(args: argparse.Namespace) -> None:
    """Predict latencies."""
    from gcp.backend.zoo import open_network
    from gcp.cost import latency
    from gcp.cost.layers import layers

    model = latency.load(Path(args.model))
    rows = []
    for name in args.network:
        net = open_network(name, model.input, None)
        seconds, kinds = model.cost(net)(net.widths), layers(net)
        row = {"network": name, "latency_s": seconds, "images_per_second": model.setup.batch / seconds}
        by_regression = sum(not model.knows(layer) for layer in kinds)
        rows.append({**row, "layers": len(kinds), "layers_by_regression": by_regression})
    facts = model.model_dump(mode="json", include={"setup", "hardware"})
    print(json.dumps({**facts, "predicted": rows}, indent=1))


def _network_of(subject):
    """The network of samples or a model, with made-up weights. UserError: its groups differ from those in the file."""
    from gcp.backend.zoo import from_gluoncv
    from gcp.graph.surgery import resized

    net = from_gluoncv(subject.network, subject.input, subject.classes)
    if set(net.widths) != set(subject.sizes):
        raise errors.UserError(f"the file names '{net.name}', but has other groups than that network; sample again")
    return resized(net, subject.sizes)


def _sampled(net, path=None):
    """The space to sample from: that of a configuration, if given; reading the decisions of samples needs none."""
    from gcp.experiment import config
    from gcp.methods.architecture import space_of
    from gcp.search.space import SampledSpace, Space, SpaceOptions

    if path is None:
        return SampledSpace(Space(net, SpaceOptions()))
    cfg = config.load(path)
    if cfg.prune.method != "architecture":
        raise errors.UserError(
            f"{path}: its method is {cfg.prune.method}, which has no space of architectures", "latency.space"
        )
    return SampledSpace(space_of(net, cfg.prune.architecture.space, cfg.prune.round_to or 1))


def _setup(args: argparse.Namespace):
    from gcp.backend import clock

    dtype = args.dtype or (clock.RUNTIMES[args.runtime].dtypes("cpu")[0] if args.runtime in clock.RUNTIMES else "")
    return clock.Setup(args.runtime, args.device, dtype, args.batch)


def _warn(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"warning: {text}", file=sys.stderr)


if __name__ == "__main__":
    command_line.main(run)
