"""A PostgreSQL server for tests: started in a folder, on a port of its own, ended with the block."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator, List, Optional

import pytest

PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def program(name: str) -> Optional[str]:
    """The path of one of PostgreSQL's programs, if it is installed."""
    return shutil.which(name) or next((str(place / name) for place in PLACES if (place / name).exists()), None)


@contextlib.contextmanager
def server(password: str = "") -> Iterator[str]:
    """The URL of a database; the test is skipped where none can be started."""
    initdb, control = program("initdb"), program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("PostgreSQL is not installed: neither initdb nor pg_ctl is there")
    user: List[str] = []
    if os.getuid() == 0:  # which PostgreSQL refuses
        names = {entry.pw_name for entry in pwd.getpwall()}
        name = next((name for name in ("postgres", "nobody") if name in names), None)
        if name is None or shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no other user to run it as")
        user = ["runuser", "-u", name, "--"]
    with tempfile.TemporaryDirectory(prefix="gcp-postgres-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        os.chmod(folder, 0o777)
        data, secret = f"{folder}/data", Path(folder, "password")
        secret.write_text(password or "none")
        secret.chmod(0o644)
        auth = ["--auth", "scram-sha-256" if password else "trust", "--pwfile", str(secret)]
        start = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"

        def run(*command: str) -> None:
            done = subprocess.run(
                [*user, *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            assert done.returncode == 0, done.stderr

        run(initdb, "-D", data, "-U", "postgres", *auth)
        run(control, "-D", data, "-w", "-l", f"{folder}/log", "-o", start, "start")
        try:
            yield f"postgresql://postgres{password and ':' + password}@127.0.0.1:{port}/postgres"
        finally:
            run(control, "-D", data, "-w", "-m", "immediate", "stop")
