"""The command line: which command it is, and what becomes of its errors."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from consumer import __version__

# Each is a module of its own in `consumer.commands`, and none loads those of the others.
COMMANDS = {
    "run": "consume tiles until SIGTERM",
    "doctor": "check output root, RabbitMQ and packages",
    "status": "show how much of each array is written",
    "missing": "list what of an array is not written yet",
    "verify": "read back what is written of an array",
    "wait": "wait until an array is complete",
    "reset": "forget what is written of an array",
    "publish": "publish an image tile by tile",
    "parked": "list, show, replay, export or drop parked tiles",
    "topology": "show, check, declare or change exchanges and queues",
    "schema": "print the wire contract for other languages",
}
_LISTED = "\n".join(f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items())
_HELP = f"""usage: consumer COMMAND [OPTIONS]

Stitches predicted image tiles from RabbitMQ into Zarr.

commands:
{_LISTED}

options:
  -h, --help     show this help
  --version      show the version

`consumer COMMAND --help` lists the command's settings and options. Each setting is also an
environment variable, e.g. TILES_OUTPUT_ROOT, and a key of the TOML file that --config-file names.

examples:
  consumer run --output-root /data/predictions --hosts rabbitmq:5672
  consumer status /data/predictions
"""
EXIT_FAILED = 1
EXIT_USAGE = 2
# As a shell says of what SIGINT ended.
EXIT_CTRL_C = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0 done, 1 failed, 2 unusable settings or arguments."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:  # closed by whoever started this
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for as long as the process lives
    try:
        code = _main(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read it has seen enough.
        _drop_output()
        return EXIT_FAILED
    except OSError as error:
        if given[:1] == ["run"]:
            raise
        _drop_output()
        return _refuse(str(error))
    except KeyboardInterrupt as error:
        return _refuse("; ".join(["interrupted", *getattr(error, "__notes__", ())]), EXIT_CTRL_C)
    return code


def _drop_output() -> None:
    """Have Python not complain once more, when it ends, of what cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(given: list[str]) -> int:
    if not given or given[0] in {"-h", "--help"}:
        sys.stdout.write(_HELP)
        return 0 if given else EXIT_USAGE
    if given[0] == "--version":
        sys.stdout.write(f"consumer {__version__}\n")
        return 0
    if given[0] not in COMMANDS:
        return _refuse(f"there is no command {given[0]!r}; see consumer --help")
    return _run(given[0], given[1:])


def _run(name: str, arguments: Sequence[str]) -> int:
    from consumer.errors import (  # noqa: PLC0415 - quick help
        ConsumerError,
        Fenced,
        StopError,
        UnsafePath,
    )

    try:
        command = import_module(f"consumer.commands.{name}")
    except ModuleNotFoundError as error:
        return _refuse(f"{error}; install zarr-tile-consumer[service]")
    try:
        code: int = command.main(arguments)
    except (StopError, UnsafePath) as error:
        return _refuse(str(error))
    except Fenced as error:
        return _refuse(f"{error}; try again", EXIT_FAILED)
    except ConsumerError as error:
        return _refuse(str(error), EXIT_FAILED)
    return code


def _refuse(reason: str, code: int = EXIT_USAGE) -> int:
    sys.stderr.write(f"consumer: {' '.join(reason.split())}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
