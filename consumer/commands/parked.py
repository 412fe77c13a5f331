"""`consumer parked`: what an operator does with messages that could not be written."""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from consumer.commands import access
from consumer.commands.display import show_record, show_table
from consumer.commands.export import export
from consumer.commands.parser import CommandParser, count, seconds
from consumer.errors import UnusableSettings
from consumer.parked import ParkedMessage, ParkingQueue

_COLUMNS = ("id", "reason", "store", "array", "bytes", "parked", "detail")


def main(arguments: Sequence[str]) -> int:
    """Do what is asked for; return the exit code."""
    options = _parser().parse_args(arguments)
    if options.act is _drop and not (options.yes or options.dry_run):
        raise UnusableSettings(
            "dropping cannot be undone: add --yes, or --dry-run to see what it is"
        )
    with ParkingQueue(access.load(options, f"consumer parked {options.name}")) as queue:
        return int(options.act(queue, _wanted(queue, options), options))


def _list(_queue: ParkingQueue, messages: Iterator[ParkedMessage], options: Any) -> int:
    show_table(_COLUMNS, map(_summary, messages), as_json=options.json)
    return 0


def _show(_queue: ParkingQueue, messages: Iterator[ParkedMessage], options: Any) -> int:
    shown = 0
    for shown, message in enumerate(messages, 1):  # noqa: B007 - how many there were
        show_record(_everything(message), as_json=options.json)
    return 0 if shown else _none(options)


def _replay(queue: ParkingQueue, messages: Iterator[ParkedMessage], options: Any) -> int:
    done = left = 0
    try:
        for message in messages:
            if not message.readable:
                left += 1
                continue
            if not options.dry_run:
                queue.replay(message)
            done += 1
    finally:
        _say(f"{'would replay' if options.dry_run else 'replayed'} {done} messages")
        if left:
            _say(f"left {left} that cannot be published as they were: export them")
    return 0 if done else _none(options)


def _export(_queue: ParkingQueue, messages: Iterator[ParkedMessage], options: Any) -> int:
    done = 0
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        for done, message in enumerate(messages, 1):  # noqa: B007 - how many there were
            export(message, options.folder, _everything(message))
    except OSError as error:
        raise UnusableSettings(
            f"--to {options.folder}: {error.strerror}; choose a folder that can be written, with "
            "room for the bodies"
        ) from None
    _say(f"exported {done} messages to {options.folder}; they stay in the queue")
    return 0 if done else _none(options)


def _drop(queue: ParkingQueue, messages: Iterator[ParkedMessage], options: Any) -> int:
    done = 0
    for message in messages:
        if not options.dry_run:
            queue.drop(message)
        done += 1
    _say(f"{'would drop' if options.dry_run else 'dropped'} {done} messages")
    return 0 if done else _none(options)


def _wanted(queue: ParkingQueue, options: Any) -> Iterator[ParkedMessage]:
    """Yield the messages that the options choose."""
    left = options.limit
    now_ms = time.time() * 1000
    for message in queue.messages():
        if left == 0:
            return
        if _matches(message, options, now_ms):
            left -= 1
            yield message


def _matches(message: ParkedMessage, options: Any, now_ms: float) -> bool:
    age_s = (now_ms - message.parked_ms) / 1000 if message.parked_ms else None
    return (
        (not options.ids or message.id in options.ids)
        and options.reason in (None, message.reason)
        and options.store in (None, message.routing_key)
        and options.array in (None, message.array)
        and (options.older_than_s is None or (age_s is not None and age_s > options.older_than_s))
        and (options.newer_than_s is None or (age_s is not None and age_s < options.newer_than_s))
    )


def _summary(message: ParkedMessage) -> dict[str, Any]:
    return {
        "id": message.id,
        "reason": message.reason,
        "store": message.routing_key,
        "array": message.array,
        "bytes": len(message.body),
        "parked": _time(message.parked_ms),
        "detail": message.detail,
    }


def _everything(message: ParkedMessage) -> dict[str, Any]:
    properties, said = message.properties, message.metadata or {}
    return _summary(message) | {
        "parked_by": message.parked_by,
        "published": _time(said.get("sent_ms")) or _time((properties.timestamp or 0) * 1000),
        "app_id": properties.app_id or "",
        "message_id": properties.message_id or "",
        "type": properties.type or "",
        "content_type": properties.content_type or "",
        "content_encoding": properties.content_encoding or "",
        "headers": _text_keys(message.headers),
        "metadata": message.metadata,
    }


def _text_keys(value: Any) -> Any:
    """Return what JSON can hold: pika leaves names that are not UTF-8 as bytes, also within."""
    if isinstance(value, dict):
        return {str(name): _text_keys(each) for name, each in value.items()}
    return [_text_keys(each) for each in value] if isinstance(value, list) else value


def _time(milliseconds: Any) -> str:
    if not isinstance(milliseconds, int) or not 0 < milliseconds < 1 << 47:
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))


def _none(options: Any) -> int:
    # What another command has taken to look at is not in the queue meanwhile.
    found = "no parked message matches" if _chosen(options) else "the parking queue is empty"
    _say(f"{found}, or another command looks at it")
    return 1 if _chosen(options) else 0


def _chosen(options: Any) -> bool:
    names = ("ids", "reason", "store", "array", "older_than_s", "newer_than_s")
    return any(getattr(options, name) for name in names)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _parser() -> CommandParser:
    parser = CommandParser(
        "consumer parked",
        "Look at messages that can never be written, publish them again, or drop them.\n\n"
        "They wait in the parking queue, with the reason in their headers. `consumer parked "
        "COMMAND --help`\nlists the command's options.",
        examples=(
            "consumer parked list --reason run_conflict",
            "consumer parked replay --store plate7/d_output.zarr --limit 1",
        ),
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = _command(commands, "list", _list, "a line for each message", "--older-than-s 86400")
    show.add_argument("--json", action="store_true", help="a JSON object for each message")
    show = _command(commands, "show", _show, "all there is to know of messages", "3f0c9a51d2e47b86")
    show.add_argument("--json", action="store_true", help="a JSON object for each message")
    act = _command(
        commands,
        "replay",
        _replay,
        "publish messages again as they were; each leaves the queue once that is confirmed",
        "--reason array_mismatch --limit 1",
    )
    act.add_argument("--dry-run", action="store_true", help="only say how many there are")
    act = _command(commands, "export", _export, "write bodies and headers to files", "--to parked")
    act.add_argument(
        "--to", dest="folder", type=Path, required=True, metavar="FOLDER",
        help="folder for the files; required",
    )  # fmt: skip
    act = _command(
        commands, "drop", _drop, "remove messages for good", "--reason undecodable --yes"
    )
    act.add_argument("--yes", action="store_true", help="do it; it cannot be undone")
    act.add_argument("--dry-run", action="store_true", help="only say how many there are")
    return parser


def _command(commands: Any, name: str, act: Any, purpose: str, example: str) -> Any:
    parser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        usage=f"consumer parked {name} [ID ...] [OPTIONS]",
        examples=(f"consumer parked {name} {example}",),
    )
    parser.set_defaults(act=act, name=name)
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these; default: all")
    for flag, what in (
        ("--reason", "only those parked for this reason, e.g. run_conflict"),
        ("--store", "only those of this store key, e.g. plate7/d_output.zarr"),
        ("--array", "only those of this array path, e.g. g1/img"),
    ):
        parser.add_argument(flag, metavar="NAME", help=f"{what}; default: any")
    for flag, what in (("--older-than-s", "longer ago"), ("--newer-than-s", "more recently")):
        parser.add_argument(
            flag, type=seconds, metavar="SECONDS",
            help=f"only those parked {what} than this, seconds; default: any",
        )  # fmt: skip
    parser.add_argument(
        "--limit", type=count, default=-1, metavar="N", help="at most so many; default: all"
    )
    access.add_options(parser)
    return parser
