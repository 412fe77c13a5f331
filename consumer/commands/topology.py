"""`consumer topology`: the exchanges, queues and bindings on the broker."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from consumer import ring
from consumer.commands import access
from consumer.commands.display import show_table
from consumer.commands.parser import CommandParser, positive
from consumer.definitions import definitions
from consumer.errors import UnusableSettings
from consumer.findings import Finding, Verdict
from consumer.questions import Channels, reached
from consumer.settings import TopologySettings
from consumer.topology import Topology, topology

_MODEL = ("kind", "name", "said")
_FOUND = ("verdict", "check", "said", "remedy")
_WORD = "topology"


def main(arguments: Sequence[str]) -> int:
    """Do what is asked for; return the exit code."""
    options = _parser().parse_args(arguments)
    settings = access.load_topology(options, f"consumer topology {options.name}")
    return int(options.act(settings, options))


def _show(settings: TopologySettings, options: Any) -> int:
    wanted = topology(settings)
    if options.definitions:
        document = definitions(wanted, settings.virtual_host)
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        show_table(_MODEL, _rows(wanted), as_json=options.json)
    return 0


def _rows(wanted: Topology) -> Iterator[dict[str, Any]]:
    for exchange in wanted.exchanges:
        yield {"kind": "exchange", "name": exchange.name, "said": exchange.type}
    for queue in wanted.queues:
        said = ", ".join(f"{name}={value}" for name, value in queue.arguments.items())
        yield {"kind": "queue", "name": queue.name, "said": said}
    for each in wanted.bindings:
        said = f"{each.destination} with {each.routing_key}"
        yield {"kind": "binding", "name": each.source, "said": said}


def _check(settings: TopologySettings, options: Any) -> int:
    wanted = topology(settings)
    return _asked(settings, options, lambda channels: ring.compared(channels, wanted))


def _declare(settings: TopologySettings, options: Any) -> int:
    wanted = topology(settings)
    return _asked(settings, options, lambda channels: ring.declared(channels, wanted))


def _rebind(settings: TopologySettings, options: Any) -> int:
    wanted = topology(settings)
    if wanted.ring is None:
        raise UnusableSettings(
            "one partition has no order of bindings; set TILES_PARTITIONS or --partitions to the "
            "number that is in use"
        )
    return _asked(settings, options, lambda channels: ring.rebound(channels, wanted))


def _move(settings: TopologySettings, options: Any) -> int:
    wanted, old = topology(settings), _other(settings, options.old)

    def move(channels: Channels) -> Iterator[Finding]:
        failed = False
        for finding in ring.declared(channels, wanted):
            failed |= finding.verdict is Verdict.FAILED
            yield finding
        # Else nothing would take what is published.
        if not failed:
            yield from ring.unbound(channels, old)

    return _asked(settings, options, move)


def _remove(settings: TopologySettings, options: Any) -> int:
    old = _other(settings, options.old)
    return _asked(settings, options, lambda channels: ring.removed(channels, old))


def _other(settings: TopologySettings, count: int) -> Topology:
    if count == settings.partitions:
        raise UnusableSettings(
            f"{count} is the number of partitions in use; set TILES_PARTITIONS or --partitions to "
            "the one that is to stay"
        )
    return topology(settings.model_copy(update={"partitions": count}))


def _asked(
    settings: TopologySettings, options: Any, ask: Callable[[Channels], Iterator[Finding]]
) -> int:
    verdicts: set[Verdict] = set()

    def rows(channels: Channels) -> Iterator[dict[str, Any]]:
        for finding in ask(channels):
            verdicts.add(finding.verdict)
            yield asdict(finding)

    with reached(settings, _WORD) as channels:
        show_table(_FOUND, rows(channels), as_json=options.json)
    return int(Verdict.FAILED in verdicts)


def _parser() -> CommandParser:
    parser = CommandParser(
        "consumer topology",
        "Show, check, declare, change or remove exchanges and queues.",
        usage="consumer topology COMMAND [OPTIONS]",
        examples=("consumer topology check --hosts rabbitmq:5672 --partitions 16",),
    )
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)
    for name, (act, purpose, example) in _ACTS.items():
        command = commands.add_parser(
            name,
            help=purpose,
            description=f"{purpose[0].upper()}{purpose[1:]}.",
            usage=f"consumer topology {name} [OPTIONS]",
            examples=(f"consumer topology {name} {example}",),
        )
        command.set_defaults(act=act)
        command.add_argument("--json", action="store_true", help="a JSON object for each line")
        if name == "show":
            command.add_argument(
                "--definitions", action="store_true", help="a document for RabbitMQ to import"
            )
        if name in {"move", "remove"}:
            command.add_argument(
                "--from",
                dest="old",
                type=positive,
                required=True,
                metavar="COUNT",
                help="the number of partitions that goes; required",
            )
        access.add_topology_options(command)
    return parser


_ACTS: dict[str, tuple[Callable[[TopologySettings, Any], int], str, str]] = {
    "show": (_show, "print what there should be, asking nobody", "--partitions 16"),
    "check": (_check, "compare what is there; exit code 1 where something is amiss", ""),
    "declare": (_declare, "declare what is missing; again and again does no harm", ""),
    "rebind": (
        _rebind,
        "bind the partitions anew in sorted order, which a restart of RabbitMQ may have changed",
        "--partitions 16",
    ),
    "move": (
        _move,
        "declare another number of partitions and have all tiles go there",
        "--partitions 16 --from 4",
    ),
    "remove": (
        _remove,
        "remove an old number of partitions, once it is empty and nobody consumes",
        "--partitions 16 --from 4",
    ),
}
