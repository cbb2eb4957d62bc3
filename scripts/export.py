"""Export networks as ONNX files, or quantized to int8, whose accuracy and speed are measured.

With several networks, speeds are relative to the first (such as the dense one).
"""

import json
import os
from pathlib import Path
from typing import Dict, List, Sequence

from gcp import command as command_line
from gcp import errors
from gcp.data import datasets


def run(argv: list) -> None:
    """Parse the arguments, load the networks, export them, and print JSON."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "network",
        nargs="+",
        help="an ONNX file, the path prefix of a saved network, or a GluonCV name with --pretrained",
    )
    parser.add_argument(
        "--onnx",
        metavar="FILE",
        help="write this ONNX file, checked against MXNet (for several networks, one file each, with the name of the "
        "network's folder before the suffix)",
    )
    parser.add_argument(
        "--int8",
        metavar="PREFIX",
        help="write PREFIX-symbol.json and -0000.params (for several networks, PREFIX-FOLDER-...); needs --data",
    )
    parser.add_argument("--table", metavar="STEM", help="write the int8 comparison as STEM.md, .tex and .csv")
    parser.add_argument(
        "--data",
        help="digits, fashion_mnist, folder, imagenet or caltech256; int8 is calibrated on its training images",
    )
    parser.add_argument("--root", help="folder with the data set's files")
    command_line.add_input(parser)
    parser.add_argument("--pretrained", action="store_true", help="use GluonCV's published weights")
    parser.add_argument(
        "--calibration",
        type=command_line.positive(int),
        default=2000,
        metavar="N",
        help="training images from which int8 ranges are calibrated",
    )
    parser.add_argument("--batch", type=command_line.batch, default=64)
    parser.add_argument(
        "--repeats", type=command_line.whole(1, 10**5), default=20, help="timed batches; the median is reported"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the printed JSON to this file")
    args = parser.parse_args(argv)
    if not args.onnx and not args.int8:
        raise errors.UserError("nothing to do: give --onnx FILE, --int8 PREFIX or both")
    if bool(args.int8) != bool(args.data):
        raise errors.UserError(
            "--int8 and --data go together: int8 is calibrated on training images and compared on test images"
        )
    if args.table and not args.int8:
        raise errors.UserError("--table only matters with --int8: it compares int8 with float32")
    endings = _endings(args.network)
    from gcp import storage
    from gcp.backend import export, zoo
    from gcp.experiment import measure
    from gcp.report import tables

    for name in args.network:
        measure.with_weights(name, args.pretrained)
    facts = {}
    if args.int8:
        shape = args.input or zoo.open_network(args.network[0], pretrained=args.pretrained).input_shape
        data = datasets.options(name=args.data, root=args.root, input=shape)
        prefixes = [args.int8 + ending for ending in endings]
        facts["int8"] = measure.quantize(
            args.network, prefixes, data, args.pretrained, args.calibration, args.batch, args.repeats
        )
        if args.table:
            tables.write_int8(facts["int8"], Path(args.table))
    if args.onnx:
        facts["onnx"] = []
        stem, suffix = os.path.splitext(args.onnx)
        for name, ending in zip(args.network, endings):
            net = zoo.open_network(name, args.input, pretrained=args.pretrained)
            path = export.to_onnx(net, stem + ending + suffix)
            facts["onnx"].append({"network": name, "file": str(path), "bytes": path.stat().st_size})
    if args.json:
        storage.write_json(args.json, facts)
    print(json.dumps(facts, indent=1))


def _endings(networks: Sequence[str]) -> List[str]:
    """What to append to the stem for each network: its folder's name, as saved networks are all called `final`.

    Nothing for a single network. Raises UserError if two networks would be written to the same files.
    """
    if len(networks) == 1:
        return [""]
    found: Dict[str, str] = {}
    for network in networks:
        ending = f"-{Path(network).parent.name or Path(network).name}"
        if ending in found:
            fix = "export them by separate commands, or move one to a folder of another name"
            raise errors.UserError(f"'{found[ending]}' and '{network}' would both be written as ...{ending}; {fix}")
        found[ending] = network
    return list(found)


if __name__ == "__main__":
    command_line.main(run)
