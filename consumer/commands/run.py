"""`consumer run`: consume tiles until SIGTERM."""

from collections.abc import Sequence

from consumer import logs, service, settings


def main(arguments: Sequence[str]) -> int:
    """Run the service; return the exit code."""
    loaded = settings.load(arguments)
    logs.configure(loaded.log_level, loaded.log_format)
    return service.run(loaded)
