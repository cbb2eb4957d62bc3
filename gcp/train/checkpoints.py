"""Results that survive a kill: each is computed once, saved, and read back by the next run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

from gcp.backend.files import load, save
from gcp.errors import UserError
from gcp.graph.network import Network
from gcp.storage import network_files, plain, read_json, write_text
from gcp.train.distributed import process_group

ANEW = "remove it, and its result will be recomputed"


def run_once(prefix: Path, compute: Callable[[Path], Tuple[Network, dict]]) -> Tuple[Network, dict]:
    """Run `compute` once and save its network and facts under `prefix`; if they are saved already, read them back.

    `compute` gets the path of a checkpoint that it may use; the checkpoint is deleted once the result is saved. With
    several ranks, the files are on rank 0, which decides whether they exist; if not, all ranks compute, and rank 0's
    facts are used.
    """
    facts_path, checkpoint, group = Path(f"{prefix}.json"), Path(f"{prefix}.checkpoint"), process_group()
    if group.broadcast_file(facts_path):
        for path in network_files(prefix):
            group.broadcast_file(path)
        checkpoint.unlink(missing_ok=True)  # a kill may have come between the result and this
        facts = read_json(facts_path, Dict[str, Any], ANEW)
        try:
            return load(prefix), facts
        except UserError as error:
            raise UserError(f"{error}; remove '{facts_path}', and it will be computed again", error.key) from error
    net, facts = compute(checkpoint)
    facts = group.broadcast(lambda: facts)
    text = json.dumps(plain(facts, finite=True))  # before anything is saved: it could not be read back
    save(net, prefix)
    write_text(facts_path, text)
    checkpoint.unlink(missing_ok=True)
    return net, read_json(facts_path, Dict[str, Any], ANEW)


def same_network(make: Callable[[], Network]) -> Network:
    """The network that `make` returns on rank 0; the other ranks need not have the files it is made from."""
    group = process_group()
    if group.world_size == 1:
        return make()
    with tempfile.TemporaryDirectory() as folder:
        net = None
        if group.rank == 0:
            net = make()
            save(net, Path(folder) / "network")
        for path in network_files(Path(folder) / "network"):
            group.broadcast_file(path)
        return net or load(Path(folder) / "network")
