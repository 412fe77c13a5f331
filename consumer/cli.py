"""The command line: `consumer run`."""

import sys
from collections.abc import Callable, Sequence

from consumer import __version__

_HELP = """usage: consumer COMMAND [OPTIONS]

Stitches predicted image tiles from RabbitMQ into Zarr.

commands:
  run        consume tiles until SIGTERM

options:
  -h, --help     show this help
  --version      show the version

`consumer COMMAND --help` lists the command's settings; each is also an environment
variable, e.g. TILES_OUTPUT_ROOT, and a key of the TOML file that --config-file names.

example:
  consumer run --output-root /data/predictions --hosts rabbitmq:5672
"""
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0 done, 2 unusable settings or arguments."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in {"-h", "--help"}:
        sys.stdout.write(_HELP)
        return 0 if given else EXIT_USAGE
    if given[0] == "--version":
        sys.stdout.write(f"consumer {__version__}\n")
        return 0
    command = _COMMANDS.get(given[0])
    if command is None:
        return _refuse(f"there is no command {given[0]!r}; see consumer --help")
    return command(given[1:])


def _run(arguments: Sequence[str]) -> int:
    try:
        from consumer import logs, service, settings  # noqa: PLC0415 - only with the extra
    except ModuleNotFoundError as error:
        return _refuse(f"{error}; install zarr-tile-consumer[service]")
    from consumer.errors import StopError  # noqa: PLC0415 - as above

    try:
        loaded = settings.load(arguments)
        logs.configure(loaded.log_level, loaded.log_format)
        return service.run(loaded)
    except StopError as error:
        return _refuse(str(error))


def _refuse(reason: str) -> int:
    sys.stderr.write(f"consumer: {' '.join(reason.split())}\n")
    return EXIT_USAGE


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"run": _run}

if __name__ == "__main__":
    sys.exit(main())
