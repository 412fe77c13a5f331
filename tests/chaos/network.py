"""A way to the broker that can be cut without either end being told."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Link:
    """Passes bytes on to the broker, or keeps them while it is cut: then nobody hears of an end.

    What was under way arrives when it is healed, as TCP would send it again.
    """

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self._ends: set[socket.socket] = set()
        self._whole = threading.Event()
        self._whole.set()
        self._closed = False

    @property
    def host(self) -> str:
        """`host:port`, as the consumer's setting takes it."""
        return f"127.0.0.1:{self._server.getsockname()[1]}"

    def cut(self) -> None:
        """Pass nothing on, in either direction."""
        self._whole.clear()

    def heal(self) -> None:
        """Pass on all that waits, and what comes."""
        self._whole.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="link", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        _close(self._server)
        for end in list(self._ends):
            _close(end)
        self.heal()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                continue
            self._whole.wait()
            try:
                broker = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            self._ends |= {client, broker}
            for one, other in ((client, broker), (broker, client)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                self._whole.wait()
                sink.sendall(data)
        self._whole.wait()
        for end in (source, sink):
            self._ends.discard(end)
            _close(end)


def _close(end: socket.socket) -> None:
    """Close a socket that another thread may be waiting on."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
