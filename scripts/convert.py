"""Convert a network from ONNX or a PyTorch ResNet's checkpoint to MXNet's files, and from these to ONNX or PyTorch.

`--check` runs both versions on the same random images and compares their outputs.
"""

import json

from gcp import command as command_line


def run(argv: list) -> None:
    """Parse the arguments, convert, and print JSON."""
    parser = command_line.Parser(description=__doc__)
    parser.add_argument(
        "source",
        metavar="IN",
        help="an .onnx, .safetensors, .pth or .pt file, the path prefix of a saved network, or a GluonCV name with "
        "--pretrained",
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        help="an .onnx, .pt2 (exported PyTorch program), .safetensors, .pth or .pt file (PyTorch state dict), or the "
        "path prefix of a saved network",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare outputs; differing by more than 1e-4 of the largest is an error"
    )
    command_line.add_input(parser)
    parser.add_argument(
        "--network", metavar="NAME", help="the GluonCV ResNet that a checkpoint belongs to (default: detected)"
    )
    parser.add_argument("--pretrained", action="store_true", help="use GluonCV's published weights")
    args = parser.parse_args(argv)
    from gcp.backend.convert import convert
    from gcp.backend.torch_files import is_checkpoint
    from gcp.experiment import measure

    if not is_checkpoint(args.source):
        measure.with_weights(args.source, args.pretrained)
    facts = convert(args.source, args.target, args.input, args.network, args.pretrained, args.check)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    command_line.main(run)
