"""A private RabbitMQ on free ports in a temporary folder, for tests and the demo."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_PORTS = (15_000, 32_000)
_DEBIAN_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"


class BrokerMissing(Exception):
    """There is no RabbitMQ on this machine."""


def server_command() -> str:
    """Return the path of rabbitmq-server: `RABBITMQ_SERVER`, else Debian's.

    Raises
    ------
    BrokerMissing
        With the ways to install one.
    """
    command = os.environ.get("RABBITMQ_SERVER", _DEBIAN_SERVER)
    if shutil.which(command) is None:
        raise BrokerMissing(
            f"there is no RabbitMQ at {command}: apt-get install rabbitmq-server, or set "
            "RABBITMQ_SERVER to the path of a rabbitmq-server"
        )
    return command


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on.

    From below the range that the kernel hands out to outgoing connections, so that none of those
    takes it before its user does.
    """
    while True:
        port = random.randrange(*_PORTS)  # noqa: S311 - only to stay out of each other's way
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class RabbitMQ:
    """A broker of its own: a context manager that starts it and ends what it started.

    `stop` and `start` in between keep its data; `kill` is a crash.
    """

    def __init__(
        self,
        *,
        extra_config: str = "",
        plugins: Sequence[str] = ("rabbitmq_consistent_hash_exchange",),
    ) -> None:
        self._command = server_command()
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
        self._epmd_port, self._dist_port = free_port(), free_port()
        self._extra_config = extra_config
        self._plugins = plugins
        self._server: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """Return `host:port`, as the consumer's setting takes it."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, timeout_s: float = 90.0) -> None:
        """Start the broker and wait until it accepts connections."""
        self._write_config()
        environment = self._environment()
        if self._epmd is None:
            self._epmd = _spawn(["epmd", "-port", str(self._epmd_port)], environment, self._log)
        self._server = _spawn([self._command], environment, self._log)
        deadline = time.monotonic() + timeout_s
        while not self._accepts():
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"RabbitMQ did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the broker as an operator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the broker without notice."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End everything that was started and remove its folder."""
        self._end(signal.SIGTERM)
        if self._epmd is not None:
            _end_group(self._epmd, signal.SIGTERM)
            self._epmd = None
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._folder / "output.log"

    def _end(self, number: int) -> None:
        if self._server is not None:
            _end_group(self._server, number)
            self._server = None

    def _accepts(self) -> bool:
        """Whether the broker answers a protocol header with a method frame."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return probe.recv(1) == b"\x01"
        except OSError:
            return False

    def _write_config(self) -> None:
        (self._folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "disk_free_limit.absolute = 50MB\n"
            "vm_memory_high_watermark.absolute = 4GB\n"
            "log.console = true\nlog.file = false\n" + self._extra_config
        )
        (self._folder / "plugins").write_text(f"[{','.join(self._plugins)}].\n")

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"tiles{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
            # Idle schedulers that spin would take the cores from the program under test.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        }


def _spawn(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - the test's own broker
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _end_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal the process's own session: the server is a shell, its Erlang machine a child."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    while _group_lives(process.pid):
        time.sleep(0.05)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
