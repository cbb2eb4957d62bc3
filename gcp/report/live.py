"""The results page while experiments run: served to this machine only, and refreshed every few seconds."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Tuple

from gcp.errors import UserError
from gcp.experiment import record as records
from gcp.report import page
from gcp.storage import now

EVERY_S = 5.0
HOST = "127.0.0.1"
HTTP_PORT = 80


class Watched:
    """What the page of a folder shows right now; records are read again only when one has been added or changed."""

    def __init__(self, folder: Path, reference: Path) -> None:
        self._folder, self._reference = folder, reference
        self._seen: Tuple[Any, ...] = self._state()  # before anything is read: what comes later is new
        self._contents: Dict[str, Any] = page.contents(folder, reference)
        self._lock = threading.Lock()

    def __call__(self) -> Dict[str, Any]:
        """See `page.contents`."""
        with self._lock:
            state = self._state()
            if state != self._seen:
                self._contents, self._seen = page.contents(self._folder, self._reference), state
            return {**self._contents, "made": now(), "under_way": page.under_way(self._folder)}

    def _state(self) -> Tuple[Any, ...]:
        found = []
        for path in records.record_paths(self._folder):
            for each in (path, path.with_name(records.SPEED)):
                try:
                    about = each.stat()
                except OSError:
                    continue
                found.append((str(each), about.st_mtime_ns, about.st_size))
        return tuple(found)


class Server(ThreadingHTTPServer):
    """A server that says nothing of a browser that stops reading, as one does when its page is closed or reloaded."""

    def handle_error(self, *who: Any) -> None:
        """Print what went wrong with a request, unless its connection was closed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*who)


def server(folder: Path, reference: Path, port: int) -> Server:
    """A server of two things, the page and its data, for this machine only.

    It answers only to its own names: a foreign page whose host name has been made to resolve to this machine is
    refused. UserError: the port is taken.
    """
    watched = Watched(folder, reference)
    page.script()  # reports a missing package before anything is served

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 (http.server's name)
            port = self.server.server_port
            names = {f"{name}:{port}" for name in ("localhost", HOST)}
            names |= {"localhost", HOST} if port == HTTP_PORT else set()  # which browsers leave out
            if self.headers.get("Host") not in names:
                self._send(403, "text/plain", "this page is only for the machine that serves it")
            elif self.path not in ("/", "/data.json"):
                self._send(404, "text/plain", "only / and /data.json exist")
            else:
                try:
                    data = watched()
                except UserError as error:  # the folder is gone; it may come back
                    self._send(503, "text/plain", str(error))
                    return
                if self.path == "/":
                    self._send(200, "text/html", page.page(data, EVERY_S))
                else:
                    self._send(200, "application/json", json.dumps(data, allow_nan=False))

        def _send(self, code: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(code)
            for key, value in (
                ("Content-Type", f"{kind}; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
            ):
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Log nothing: a line every five seconds would hide what matters."""

    try:
        return Server((HOST, port), Answer)
    except OSError as error:
        raise UserError(
            f"--port: {port} cannot be used ({error.strerror}); give another port, or 0", "live.port"
        ) from None


def serve(folder: Path, reference: Path, port: int) -> None:
    """Serve until Ctrl-C."""
    with server(folder, reference, port) as serving:
        print(
            f"http://{HOST}:{serving.server_port}/ shows {folder} until you press Ctrl-C", file=sys.stderr, flush=True
        )
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            print("stopped; running experiments are not affected", file=sys.stderr)
