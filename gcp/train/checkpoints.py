"""Stages that survive a kill: each is computed once, saved, and read back by the next run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Callable, Tuple

from gcp.backend.files import load, paths, save
from gcp.graph.network import Network
from gcp.storage import write_text
from gcp.train.distributed import workers


def stage(prefix: Path, compute: Callable[[Path], Tuple[Network, dict]]) -> Tuple[Network, dict]:
    """Do a stage once: its network and its facts are saved under `prefix`, and read back the next time.

    `compute` gets the path of a checkpoint that it may use; the checkpoint goes when the stage is saved. Of several
    workers, worker 0 says whether it is done, and has the files; what is not done all compute, with worker 0's facts.
    """
    facts_path, checkpoint, team = Path(f"{prefix}.json"), Path(f"{prefix}.checkpoint"), workers()
    if team.share_file(facts_path):
        for path in paths(prefix):
            team.share_file(path)
        return load(prefix), json.loads(facts_path.read_text())
    net, facts = compute(checkpoint)
    facts = team.first(lambda: facts)
    save(net, prefix)
    write_text(facts_path, json.dumps(facts))
    checkpoint.unlink(missing_ok=True)
    return net, json.loads(facts_path.read_text())


def same_network(make: Callable[[], Network]) -> Network:
    """The network that `make` gives worker 0; the other workers need not have the files that it comes from."""
    team = workers()
    if team.n == 1:
        return make()
    with tempfile.TemporaryDirectory() as folder:
        net = None
        if team.rank == 0:
            net = make()
            save(net, Path(folder) / "network")
        for path in paths(Path(folder) / "network"):
            team.share_file(path)
        return net or load(Path(folder) / "network")
