"""The writer process, as the owning thread sees it: requests out, results and errors back.

Opening, reading, encoding and committing have an interpreter of their own, so that none of it keeps
the owning thread waiting. Voxels lie in memory that both processes map; what goes through the pipe
is small. Each call returns at once; its `done` is called on the owning thread with a result or an
error of the consumer's own.

Where this process ends, the writer ends too: it reads the end of the pipe.
"""

import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from consumer.arena import Arena
from consumer.blocks import ArrayKey, Write
from consumer.budget import KNOWN_SHARE
from consumer.errors import ConsumerError, StopError, WriterLost
from consumer.findings import Finding
from consumer.journal import Begun
from consumer.message import Outline
from consumer.requests import (
    Allow,
    Answer,
    BeginLone,
    Close,
    Done,
    EndLone,
    Examine,
    Open,
    Opened,
    Probe,
    Remark,
    Request,
    Room,
    Setup,
    WriteBlock,
    Written,
)
from consumer.settings import Settings

_END_S = 1.0

log = logging.getLogger(__name__)


class Storage:
    """Starts the writer process and speaks with it.

    Parameters
    ----------
    arena : Arena
        Where the buffers of blocks lie.
    post : callable
        Runs a callable on the owning thread.
    stop : callable
        Called on the owning thread with an error when the writer has ended on its own.
    """

    def __init__(
        self,
        settings: Settings,
        arena: Arena,
        post: Callable[[Callable[[], None]], None],
        stop: Callable[[StopError], None],
    ) -> None:
        self._arena = arena
        self._post = post
        self._stop = stop
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[float, Done[Any]]] = {}
        self._closed = False
        self.root_writable = True
        self._socket, self._process = _start(arena)
        self._pipe = Connection(os.dup(self._socket.fileno()))
        # Sending waits where the writer does not read, for instance because it is stopped.
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="to-writer")
        self._send(_setup(settings, arena))
        self._receiver = threading.Thread(target=self._receive, name="from-writer", daemon=True)
        self._receiver.start()

    @property
    def pid(self) -> int:
        """The writer's process id."""
        return self._process.pid

    @property
    def idle(self) -> bool:
        """Whether every result has come back and been passed on."""
        return not self._waiting

    @property
    def oldest_s(self) -> float:
        """Age of the oldest request that is not answered, in seconds; 0 where all are."""
        asked, _done = next(iter(self._waiting.values()), (None, None))
        return 0.0 if asked is None else time.monotonic() - asked

    def open(
        self, outline: Outline, max_block_bytes: int, done: Done[Opened], *, renew: bool = False
    ) -> None:
        """Open an array; see `Open` and `Opened`."""
        self._ask(Open(outline, max_block_bytes, renew), done)

    def allow(self, store: str, epoch: str) -> None:
        """Let be committed what is written to a store in an epoch; see `Allow`."""
        self._ask(Allow(store, epoch), _log_error)

    def write(
        self,
        write: Write,
        done: Done[Written],
        *,
        source: str | None = None,
        run: str | None = None,
    ) -> None:
        """Merge, encode and commit a block of an array that is open, bound to a source and run."""
        request = WriteBlock(
            write.key.array,
            write.box,
            self._arena.offset(write.buffer),
            write.buffer.dtype,
            tuple(write.filled),
            write.merge,
            write.key.block,
            write.tiles,
            source,
            run,
        )
        self._ask(request, done)

    def remark(
        self, array: ArrayKey, done: Done[Written], *, announced: str | None = None, parked: int = 0
    ) -> None:
        """Put something down in the ledger of an array that is open; see `Remark`."""
        self._ask(Remark(array, announced, parked), done)

    def close_array(self, array: ArrayKey) -> None:
        """Let go of an array."""
        self._ask(Close(array), _log_error)

    def examine(self, accepted: str | None, done: Done[Sequence[Finding]]) -> None:
        """See whether the root can be used, and what there is to warn of; see `Examine`."""
        self._ask(Examine(accepted), done)

    def probe(self, done: Done[Room]) -> None:
        """Try whether the root can be written, and how much."""
        self._ask(Probe(), done)

    def begin_lone(self, fingerprints: Sequence[str], done: Done[Begun]) -> None:
        """Note that the first of some messages are handled alone; see `Begun`."""
        self._ask(BeginLone(fingerprints), done)

    def end_lone(self, entry: str, settled: Sequence[str]) -> None:
        """Note that a lone handling has ended; see `EndLone`."""
        self._ask(EndLone(entry, settled), _log_error)

    def close(self) -> None:
        """End the writer process, whatever it does."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._sender.shutdown(cancel_futures=True)
        self._receiver.join()
        self._pipe.close()
        self._socket.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            log.warning("the writer process hangs; it ends when the disk lets it go")

    def _ask(self, request: Request, done: Done[Any]) -> None:
        if self._closed:
            return
        number = next(self._numbers)
        self._waiting[number] = time.monotonic(), done
        self._send((number, request))

    def _send(self, what: object) -> None:
        self._sender.submit(self._send_now, what)

    def _send_now(self, what: object) -> None:
        with contextlib.suppress(OSError):  # the receiving thread sees the end
            self._pipe.send(what)

    def _receive(self) -> None:
        try:
            while True:
                self._post(partial(self._take, self._pipe.recv()))
        except (EOFError, OSError):
            self._post(self._lost)

    def _take(self, answer: Answer) -> None:
        _asked, done = self._waiting.pop(answer.number)
        done(answer.result, answer.error)

    def _lost(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            code = 0
        self._waiting.clear()
        self._stop(
            WriterLost(
                f"the writer process ended with {_named(code)}; nothing is lost, the broker "
                "delivers again what was not written. If memory ran out, raise the limit of the "
                "container or lower TILES_MEMORY_BUDGET_BYTES"
            )
        )


def _start(arena: Arena) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    ours, theirs = socket.socketpair()
    descriptors = (theirs.fileno(), arena.descriptor)
    # It must find what this process found, wherever that came from.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    process = subprocess.Popen(  # noqa: S603 - this very interpreter
        [sys.executable, "-P", "-m", "consumer.writer", *map(str, descriptors)],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        pass_fds=descriptors,
        process_group=0,  # an interrupt from the terminal is this process's business
    )
    theirs.close()
    return ours, process


def _setup(settings: Settings, arena: Arena) -> Setup:
    return Setup(
        settings.output_root,
        settings.workers,
        settings.write_empty_chunks,
        settings.file_mode,
        settings.folder_mode,
        settings.memory_budget_bytes // KNOWN_SHARE,
        settings.log_level,
        settings.log_format,
        arena.nbytes,
        settings.failpoints,
        os.getpid(),
        settings.consumer_name,
        settings.lone_attempts,
    )


def _named(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _log_error(_result: object, error: ConsumerError | None) -> None:
    if error is not None:
        log.warning(
            "a store could not be released, or the journal not be written",
            extra={"error": str(error)},
        )
