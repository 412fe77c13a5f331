"""`consumer run`: consume tiles until SIGTERM."""

from collections.abc import Sequence

from pydantic_settings import CLI_SUPPRESS

from consumer import logs, service, settings
from consumer.commands import access
from consumer.commands.parser import CommandParser
from consumer.settings import Access, Settings

PURPOSE = """\
Consume tiles until SIGTERM, and stitch them into Zarr.

Each setting is a flag, an environment variable (TILES_OUTPUT_ROOT and so on), a file in the folder
of --secrets-folder or a key of the TOML file of --config-file; the first that is given counts.
Sizes take units: 512MiB.

exit code:
  0  drained after SIGTERM
  1  the grace time was up before all was written; the broker delivers the rest again
  2  the settings or the output root cannot be used"""


def main(arguments: Sequence[str]) -> int:
    """Run the service; return the exit code."""
    if {"-h", "--help"} & set(arguments):
        _parser().print_help()
        return 0
    loaded = settings.load(arguments)
    logs.configure(loaded.log_level, loaded.log_format)
    return service.run(loaded)


def _parser() -> CommandParser:
    """Return what shows the help: the settings' own model reads the flags."""
    parser = CommandParser(
        "consumer run",
        PURPOSE,
        usage="consumer run --output-root FOLDER [OPTIONS]",
        examples=("consumer run --output-root /data/predictions --hosts rabbitmq:5672",),
    )
    own = {
        name: field
        for name, field in Settings.model_fields.items()
        if name not in Access.model_fields and CLI_SUPPRESS not in field.metadata
    }
    access.add_group(parser, "service", "What is written, and with how much of what.", own)
    access.add_group(parser, "RabbitMQ", "How to reach it.", Access.model_fields)
    return parser
