"""Make one network smaller and faster: prune, train, evaluate and time it, and write it as ONNX and MXNet files.

With --explore no network is written: the accuracy at 90, 80, ... 30 % of the cost without any training is shown, so
that a target can be chosen.
"""

from __future__ import annotations

import re
from pathlib import Path

from gcp import command as command_line
from gcp import errors, runtime, storage
from gcp.data import datasets

FEW_MS = 10  # milliseconds; a pass on several threads that takes less says little about the network
EXPLORED = [round(0.1 * tenths, 1) for tenths in range(9, 2, -1)]


def run(argv: list[str]) -> None:
    """Parse the arguments, compress or explore, and print the results."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "network", help="an ONNX file, the path prefix of a saved network, or a GluonCV name with --pretrained"
    )
    parser.add_argument(
        "--data",
        required=True,
        help="a folder of class folders, or one with train/ and test/, or the name of a data set",
    )
    parser.add_argument("--root", help="folder with the files of the data set that --data names")
    parser.add_argument("--unlabelled", action="store_true", help="DATA holds images only, without classes")
    parser.add_argument(
        "--target", type=command_line.positive(float, 1), default=0.5, help="fraction of the cost to keep"
    )
    parser.add_argument("--cost", choices=["macs", "params", "latency"], default="macs")
    parser.add_argument(
        "--round-to",
        type=command_line.whole(1, 65536),
        metavar="N",
        help="every width is a multiple of this (default: 8; for latency, the granularity found on this machine)",
    )
    parser.add_argument(
        "--epochs",
        type=command_line.natural,
        help="epochs of training; 0: no training, which takes seconds to minutes (default: as many as take the time of "
        "five epochs of the original network)",
    )
    parser.add_argument(
        "--lr", type=command_line.positive(float), default=0.01, help="highest learning rate of fine-tuning"
    )
    parser.add_argument("--augment", choices=["none", "crop", "crop_flip", "imagenet"], default="crop_flip")
    parser.add_argument("--batch", type=command_line.batch, default=64, help="images per training batch")
    parser.add_argument("--n-train", type=command_line.positive(int), help="use only this many training images")
    command_line.add_input(parser)
    parser.add_argument("--pretrained", action="store_true", help="use GluonCV's published weights")
    parser.add_argument("--threads", type=command_line.threads, default=0)
    parser.add_argument("--timed-batch", type=command_line.batch, default=1, metavar="N", help="images per timed batch")
    parser.add_argument("--seed", type=command_line.natural, default=0)
    parser.add_argument("--out", metavar="PREFIX", help="prefix of the files written (default: compressed/NETWORK)")
    parser.add_argument("--explore", action="store_true", help="show the accuracy at several targets without training")
    args = parser.parse_args(argv)
    runtime.use_threads(args.threads)
    from gcp.experiment import compress

    job = compress.Job(
        network=args.network,
        data=_data(args),
        target=args.target,
        out=args.out or default_prefix(args.network),
        cost=args.cost,
        epochs=args.epochs,
        pretrained=args.pretrained,
        threads=args.threads,
        seed=args.seed,
        lr=args.lr,
        round_to=args.round_to,
        timed_batch=args.timed_batch,
        bar=runtime.progress_bar,
    )
    if args.explore:
        _explore(job)
    else:
        _print(job, compress.compress(job))


def default_prefix(network: str) -> str:
    """The prefix of the files written for a network, which can be given by the name of one of its own files."""
    name = Path(storage.network_prefix(network)).name
    return str(Path("compressed") / re.sub(r"\.onnx$", "", name, flags=re.IGNORECASE))


def _data(args) -> datasets.Data:
    """The data that the arguments name: a data set, or a folder of images."""
    from gcp.backend import zoo
    from gcp.experiment import measure

    measure.with_weights(args.network, args.pretrained)
    named = args.data in datasets.DATASETS and not Path(args.data).is_dir()
    net = zoo.open_network(args.network, args.input, pretrained=args.pretrained)
    values = {"name": args.data, "root": args.root} if named else {"name": "folder", "root": args.data}
    if args.unlabelled:
        if named:
            raise errors.UserError(f"--unlabelled is for a folder of images, but {args.data} is a data set with labels")
        values = {"name": "images", "root": args.data, "n_classes": net.n_classes}
    if not named and args.root is not None:
        raise errors.UserError("--root needs the name of a data set as --data; give a folder of images as --data alone")
    how = {"batch": args.batch, "augment": args.augment, "n_train": args.n_train}
    return datasets.options(**values, input=tuple(net.input_shape), **how)


def _print(job, finished) -> None:
    """Print six lines: accuracy and costs before and after, and the files."""
    record, speed = finished.record, finished.speeds.throughput
    dense, small = record.stages.dense, record.stages.final
    accuracy = "top-1" if job.data.LABELLED else "agreement"
    noisy = ", noisy" if speed.dense.noisy or speed.final.noisy else ""
    setup = f"batch {speed.setup['batch']}, {speed.setup['device']}, threads {speed.setup['threads']}{noisy}"
    rows = [
        ("", "before", "after", ""),
        (accuracy, f"{100 * dense.top1:.2f} %", f"{100 * small.top1:.2f} %", f"of {small.n_eval:,} test images"),
        ("MACs", f"{dense.macs:,}", f"{small.macs:,}", f"{100 * record.macs_kept:.1f} %"),
        ("parameters", f"{dense.params:,}", f"{small.params:,}", f"{100 * record.params_kept:.1f} %"),
        (
            "milliseconds",
            f"{1e3 * speed.dense.latency_s:.3f}",
            f"{1e3 * speed.final.latency_s:.3f}",
            f"{1 / speed.latency_kept:.2f} x as fast ({setup})",
        ),
    ]
    for name, before, after, note in rows:
        print(f"{name:<13}{before:>16}{after:>16}  {note}".rstrip())
    if speed.dense.latency_s < FEW_MS / 1e3 and speed.setup["threads"] > 1:
        print(f"note: below {FEW_MS} ms, threads spend most of the time waiting for each other: see --threads 1 or "
              "--timed-batch 64")  # fmt: skip
    print(f"{job.out}.onnx, {job.out}-symbol.json, {job.out}-0000.params")


def _explore(job) -> None:
    """Write a table and a picture of the accuracy at several targets, and print the table."""
    from gcp.experiment import compress
    from gcp.report import figures, tables

    rows, stem = [], Path(f"{job.out}-explore")
    with runtime.progress_bar("targets") as progress:
        for row in compress.explore(job, EXPLORED):
            rows.append(row)
            progress(len(rows) - 1, len(EXPLORED))
    paths = tables.write_front(rows, stem) + figures.save(figures.front(rows), stem)
    print(paths[0].read_text(encoding="utf-8"))
    for path in paths:
        print(path)


if __name__ == "__main__":
    command_line.main(run)
