"""The demo ends with an exact store, and leaves nothing behind however it ends."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from pika.exceptions import ChannelClosedByBroker

from consumer.demo.brokers import broker, connect
from consumer.testing import BrokerMissing, RabbitMQ, server_command

ROOT = Path(__file__).parents[2]
RESULT_KEYS = {"tiles", "acked", "parked", "identical", "seconds", "tiles_per_second"}


@pytest.fixture
def installed_broker() -> None:
    """Fail in CI, and skip elsewhere, where there is no RabbitMQ."""
    try:
        server_command()
    except BrokerMissing as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


class Demo:
    """The demo as a process, with an output folder and a folder for temporary files."""

    def __init__(self, folder: Path) -> None:
        self.output, self.temporary = folder / "output", folder / "tmp"
        self.temporary.mkdir()
        self._words = folder / "words"
        self._child: psutil.Popen | None = None

    def start(self, *options: str, **environment: str) -> psutil.Popen:
        command = [sys.executable, "-m", "consumer.demo", "--output", str(self.output), *options]
        with self._words.open("wb") as words:
            self._child = psutil.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(self.temporary), **environment},
                stdout=words,
                stderr=words,
            )
        return self._child

    def finish(self, timeout_s: float = 240) -> int:
        assert self._child is not None
        return int(self._child.wait(timeout_s))

    def words(self) -> str:
        return self._words.read_text()

    def close(self) -> None:
        if self._child is not None and self._child.is_running():
            self._child.terminate()
            self._child.wait(120)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    found = Demo(tmp_path)
    yield found
    found.close()


def until(condition: Callable[[], bool], what: Callable[[], str], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


@pytest.mark.usefixtures("installed_broker")
def test_the_demo_stitches_a_real_image_bit_for_bit(demo: Demo) -> None:
    demo.start("--size", "512")
    assert demo.finish() == 0, demo.words()
    result = json.loads((demo.output / "result.json").read_text())
    assert result.keys() == RESULT_KEYS
    assert (result["tiles"], result["acked"], result["parked"]) == (9, 9, 0)
    assert result["identical"] is True
    assert (demo.output / "stitched.png").read_bytes().startswith(b"\x89PNG")
    assert list(demo.temporary.iterdir()) == []


@pytest.mark.usefixtures("installed_broker")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_in_the_middle_leaves_no_process_and_no_folder(
    demo: Demo, number: signal.Signals
) -> None:
    child = demo.start("--size", "2048")
    log = demo.output / "producer.log"
    until(lambda: log.exists() and "published" in log.read_text(), demo.words)
    started = child.children(recursive=True)
    assert len(started) > 3
    child.send_signal(number)
    assert demo.finish() == 128 + number, demo.words()
    until(lambda: not any(process.is_running() for process in started), lambda: str(started), 10)
    assert list(demo.temporary.iterdir()) == []


def test_without_rabbitmq_one_message_says_what_to_do(demo: Demo) -> None:
    demo.start("--size", "256", RABBITMQ_SERVER="/nowhere/rabbitmq-server")
    assert demo.finish() == 2
    assert "apt-get install rabbitmq-server" in demo.words()
    assert "docker run" in demo.words()
    assert "Traceback" not in demo.words()


def test_a_broker_that_is_not_there_is_named(demo: Demo) -> None:
    demo.start("--size", "256", "--broker", "127.0.0.1:1")
    assert demo.finish() == 2
    assert "127.0.0.1:1" in demo.words()
    assert "Traceback" not in demo.words()


@pytest.mark.usefixtures("installed_broker")
def test_a_running_broker_is_left_as_it_was() -> None:
    with RabbitMQ() as running:
        with broker(running.host) as found:
            declare(running.host, found.prefix)
        with connect(running.host) as connection, pytest.raises(ChannelClosedByBroker) as closed:
            connection.channel().queue_declare(f"{found.prefix}.00", passive=True)
        assert closed.value.reply_code == 404


def declare(host: str, prefix: str) -> None:
    with connect(host) as connection:
        channel = connection.channel()
        channel.exchange_declare(prefix, "topic", durable=True)
        channel.queue_declare(f"{prefix}.00", durable=True)


def test_a_folder_with_other_peoples_files_is_not_emptied(demo: Demo) -> None:
    demo.output.mkdir()
    precious = demo.output / "thesis.tex"
    precious.touch()
    demo.start("--size", "256")
    assert demo.finish() == 2
    assert "thesis.tex" in demo.words()
    assert precious.exists()
