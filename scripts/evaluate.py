"""Evaluate a network on a data set's test images: accuracy, loss, cost, throughput."""

import json

from gcp import command as command_line
from gcp.data import datasets


def run(argv: list) -> None:
    """Parse the arguments, load the network, evaluate it, and print JSON."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "network", help="an ONNX file, the path prefix of a saved network, or a GluonCV name with --pretrained"
    )
    parser.add_argument("--data", required=True, help="digits, fashion_mnist, folder, imagenet or caltech256")
    parser.add_argument("--root", help="folder with the data set's files")
    command_line.add_input(parser)
    parser.add_argument("--pretrained", action="store_true", help="use GluonCV's published weights")
    parser.add_argument("--batch", type=command_line.batch, default=64)
    args = parser.parse_args(argv)
    from gcp.backend import files, zoo
    from gcp.experiment import measure

    shape = args.input
    if shape is None:
        shape = zoo.open_network(args.network).input_shape if files.is_saved(args.network) else (3, 224, 224)
    data = datasets.options(name=args.data, root=args.root, input=shape)
    print(json.dumps(measure.evaluate(args.network, data, args.pretrained, args.batch), indent=1))


if __name__ == "__main__":
    command_line.main(run)
