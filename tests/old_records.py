"""Test records, which are flat dicts, as the files of finished runs."""

import hashlib
import json

from gcp.experiment.record import RECORD, SPEED, Record, Speeds


def write(folder, record: dict) -> None:
    """Write a test record into a run's folder as `record.json` and, where it has throughputs, `speed.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    stages = {name: dict(stage) for name, stage in record["stages"].items()}
    speeds = {name: stage.pop("throughput", None) for name, stage in stages.items()}
    for stage in stages.values():
        stage.update(
            {"macs": int(1000 * stage["macs"]), "params": int(stage["params"]), "images": int(stage["images"])}
        )
    stages["final"]["macs"] = round(record["macs_kept"] * stages["dense"]["macs"])
    stages["final"]["params"] = round(record["params_kept"] * stages["dense"]["params"])
    keys = set(Record.model_fields) & set(record)
    values = {key: record[key] for key in keys} | {
        "fingerprint": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12],
        "stages": stages,
        "round_to": record["config"]["prune"].get("round_to") or 1,
        "history": record["iterations"],
        "images": {"pruning": record["images_before_finetune"]},
    }
    (folder / RECORD).write_text(json.dumps(Record.model_validate(values).model_dump(mode="json")))
    if speeds["final"]:
        timing = {name: {k: s[k] for k in ("latency_s", "images_per_second")} for name, s in speeds.items() if s}
        setup = {"runtime": "mxnet", **{key: speeds["final"][key] for key in ("device", "dtype", "batch", "threads")}}
        found = {"setup": setup, "hardware": record["device"], "dense": timing["dense"], "final": timing["final"]}
        (folder / SPEED).write_text(json.dumps(Speeds(throughput=found).model_dump(mode="json")))
