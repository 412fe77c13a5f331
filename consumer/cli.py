"""The command line: a table of commands, each in a module of its own."""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from consumer import __version__


class Command(NamedTuple):
    """A command: the module that has its `main`, and its purpose in a line."""

    module: str
    purpose: str


COMMANDS = {
    "run": Command("consumer.commands.run", "consume tiles until SIGTERM"),
    "publish": Command("consumer.commands.publish", "publish an image tile by tile"),
    "parked": Command(
        "consumer.commands.parked", "list, show, replay, export or drop parked tiles"
    ),
    "schema": Command("consumer.commands.schema", "print the wire contract for other languages"),
}
_HELP = """usage: consumer COMMAND [OPTIONS]

Stitches predicted image tiles from RabbitMQ into Zarr.

commands:
{commands}

options:
  -h, --help     show this help
  --version      show the version

`consumer COMMAND --help` lists the command's settings and options. Each setting is also an
environment variable, e.g. TILES_OUTPUT_ROOT, and a key of the TOML file that --config-file names.

example:
  consumer run --output-root /data/predictions --hosts rabbitmq:5672
"""
EXIT_FAILED = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0 done, 1 failed, 2 unusable settings or arguments."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help"}:
        sys.stdout.write(_help())
        return 0 if given else EXIT_USAGE
    if given[0] == "--version":
        sys.stdout.write(f"consumer {__version__}\n")
        return 0
    command = COMMANDS.get(given[0])
    if command is None:
        return _refuse(f"there is no command {given[0]!r}; see consumer --help")
    return _run(command, given[1:])


def _run(command: Command, arguments: Sequence[str]) -> int:
    from consumer.errors import ConsumerError, StopError  # noqa: PLC0415 - quick help

    try:
        # Most commands need the extra, and none the modules of the others.
        module = importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        return _refuse(f"{error}; install zarr-tile-consumer[service]")
    try:
        return int(module.main(arguments))
    except StopError as error:
        return _refuse(str(error))
    except ConsumerError as error:
        return _refuse(str(error), EXIT_FAILED)


def _help() -> str:
    lines = (f"  {name:<10} {command.purpose}" for name, command in COMMANDS.items())
    return _HELP.format(commands="\n".join(lines))


def _refuse(reason: str, code: int = EXIT_USAGE) -> int:
    sys.stderr.write(f"consumer: {' '.join(reason.split())}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
