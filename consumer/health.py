"""The HTTP server of the probes and metrics, in a thread of its own."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

LOOP_LIMIT_S = 30.0


@dataclass(slots=True)
class Health:
    """What the owning thread says of itself; single attributes, so no lock is needed.

    Attributes
    ----------
    looped : float
        When the owning thread last went round, on `clock`.
    subscribed, root_writable, draining : bool
        Ready means the first two and not the third.
    """

    clock: Callable[[], float]
    looped: float
    subscribed: bool = False
    root_writable: bool = False
    draining: bool = False

    @property
    def live(self) -> bool:
        """Whether the owning thread still goes round; never a matter of broker or disk."""
        return self.clock() - self.looped < LOOP_LIMIT_S

    @property
    def ready(self) -> bool:
        """Whether tiles can be taken and written."""
        return self.subscribed and self.root_writable and not self.draining


def serve(host: str, port: int, health: Health, registry: CollectorRegistry) -> ThreadingHTTPServer:
    """Serve `/livez`, `/readyz` and `/metrics` until `shutdown`; raises OSError on a used port."""

    class Handler(BaseHTTPRequestHandler):
        server_version = "tiles"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, content_type, encode(registry))
            elif path == "/livez":
                self._probe(health.live, {"looped_s_ago": health.clock() - health.looped})
            elif path == "/readyz":
                names = ("subscribed", "root_writable", "draining")
                self._probe(health.ready, {name: getattr(health, name) for name in names})
            else:
                known = b"/livez /readyz /metrics\n"
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", known)

        def _probe(self, good: bool, details: dict[str, Any]) -> None:
            status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, "application/json", json.dumps(details).encode() + b"\n")

        def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Probes every few seconds are not worth a line."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
