"""Run one experiment: CONFIG -> one run folder with log.jsonl, the networks and record.json. Run again to resume."""
import json

from gcp import config


def run(argv: list) -> None:
    """Parse, run, print the record's path and its main numbers."""
    parser = config.Parser(description=__doc__)
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
                        help="e.g. prune.target=0.2")
    parser.add_argument("--untimed", action="store_true",
                        help="leave throughput out; run again without this when nothing else runs, to fill it in")
    args = parser.parse_args(argv)
    cfg = config.load(args.config, args.set)
    config.use_threads(cfg.threads)
    from gcp import experiment  # imports MXNet, which reads the number of threads as it loads

    record = experiment.run(cfg)
    if not args.untimed:
        record = experiment.measure_speed(cfg)
    final = record["stages"]["final"]
    print(json.dumps({"top1": final["top1"], "n_eval": final["n_eval"], "macs_kept": record["macs_kept"],
                      "params_kept": record["params_kept"],
                      "images_per_second": (final["throughput"] or {}).get("images_per_second")}))
    print(f"record: {experiment.record_path(cfg)}")


if __name__ == "__main__":
    config.main(run)
