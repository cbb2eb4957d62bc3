"""Export a network: as an ONNX file, or with int8 arithmetic, whose accuracy and speed are measured."""
import json

from gcp import config


def run(argv: list) -> None:
    """Parse, load, export, print JSON."""
    parser = config.Parser(description=__doc__)
    parser.add_argument("network", help="path prefix of a saved network, or a GluonCV name with --pretrained")
    parser.add_argument("--onnx", metavar="FILE", help="write this ONNX file; it is checked against MXNet")
    parser.add_argument("--int8", metavar="PREFIX", help="write PREFIX-symbol.json and -0000.params; needs --data")
    parser.add_argument("--data", help="digits, fashion_mnist or folder; int8 is calibrated on its training images")
    parser.add_argument("--root", help="folder that holds the data set's files")
    parser.add_argument("--input", type=config.shape, metavar="C,H,W", help="default: the network's own")
    parser.add_argument("--pretrained", action="store_true", help="GluonCV's published weights")
    parser.add_argument("--calibration", type=int, default=2000, metavar="N", help="training images for int8's ranges")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20, help="timed batches, of which the median counts")
    parser.add_argument("--json", metavar="FILE", help="write the printed JSON to this file, too")
    args = parser.parse_args(argv)
    if not args.onnx and not args.int8:
        raise config.UserError("nothing to do: give --onnx FILE, --int8 PREFIX or both")
    if bool(args.int8) != bool(args.data):
        raise config.UserError("--int8 and --data go together: int8 is calibrated on training images, compared on test "
                               "images")
    if args.calibration < 1:
        raise config.UserError(f"--calibration {args.calibration}: should be at least 1")
    how = config.section(config.Throughput, {"batch": args.batch, "repeats": args.repeats})
    from gcp import experiment, export, gluon, records

    experiment.with_weights(args.network, args.pretrained)
    net = gluon.open_network(args.network, args.input, pretrained=args.pretrained)
    facts = {"network": args.network}
    if args.int8:
        data = config.section(config.Data, {"name": args.data, "root": args.root, "input": net.input_shape})
        facts["int8"] = experiment.quantize(args.network, args.int8, data, args.pretrained, args.calibration, how.batch,
                                            how.repeats)
    if args.onnx:
        path = export.to_onnx(net, args.onnx)
        facts["onnx"] = {"file": str(path), "bytes": path.stat().st_size}
    print(json.dumps(facts, indent=1))
    if args.json:
        records.write_json(args.json, facts)


if __name__ == "__main__":
    config.main(run)
