"""Another number of partitions under load, by the commands that operators are told to use."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from harness import wait_until
from scale import load
from scale.brokers import in_parallel
from scale.stage import Stage
from scale.watch import Watch

_REPLICAS = 2
# So many that each of sixteen partitions has some.
_STORES = 96
_PATIENCE_S = 180.0


@dataclass(frozen=True)
class Removal:
    """What `consumer topology remove` did: its exit code, and the old queues that are left."""

    code: int
    left: Sequence[str]


def moving(stage: Stage) -> None:
    """Change the number of partitions under load, each time as documented, and nothing is lost."""
    counts = (4, 16) if stage.options.quick else (4, 16, 4, 16)
    more = 300 if stage.options.quick else 1500
    images = load.images(dict.fromkeys(load.keys(_STORES), ""), each=_STORES)
    stage.partitions = counts[0]
    stage.operate("declare")
    watches = [_generation(stage)]
    moves = []
    with stage.producing(images) as producer:
        stage.wait_all_delivered(watches[-1], time.time(), f"{counts[0]} partitions")
        for before, after in pairwise(counts):
            began = time.monotonic()
            watches.append(_move(stage, before, after))
            moves.append(time.monotonic() - began)
            stage.wait_published(producer, more)
    stage.figures |= {"moves": len(moves), "move_s": max(moves)}
    stage.finish()
    stage.figures["redelivered"] = sum(watch.redelivered for watch in watches)


def _move(stage: Stage, before: int, after: int) -> Watch:
    """Have new consumers take over from the old ones, whose partitions are then removed."""
    old_queues, old = stage.queues, list(stage.replicas)
    stage.partitions = after
    stage.operate("move", "--from", f"{before}")
    watch, since = _generation(stage), time.time()
    stage.wait_all_delivered(watch, since, f"{before} to {after} partitions")
    _wait_empty(stage, old_queues)
    refused = _removal(stage, before, old_queues)
    in_parallel([partial(stage.end, each) for each in old])
    stage.replicas[:] = [each for each in stage.replicas if each not in old]
    done = _removal(stage, before, old_queues)
    stage.problems += judged(old_queues, refused, done)
    stage.wait_all_delivered(watch, time.time(), f"{after} partitions alone")
    return watch


def judged(old: Sequence[str], refused: Removal, done: Removal) -> Iterator[str]:
    """Yield what is wrong: old queues go once nobody consumes them, all of them, and not before."""
    if not refused.code or set(refused.left) != set(old):
        yield f"with consumers, of the old queues {old} were removed: {refused}"
    if done.code or done.left:
        yield f"the old queues {old} were not all removed: {done}"


def _generation(stage: Stage) -> Watch:
    """Start consumers of the number of partitions that is in use now."""
    stage.add_replicas(_REPLICAS, declare_topology=False)
    new = stage.replicas[-_REPLICAS:]
    for replica in new:
        replica.start(ready=False)
    for replica in new:
        stage.wait_ready(replica)
    watch: Watch = stage.enter(Watch(new))
    return watch


def _wait_empty(stage: Stage, queues: Sequence[str]) -> None:
    with stage.channel() as channel:
        wait_until(
            lambda: not any(channel.depth(queue) for queue in queues),
            f"{queues} to be drained",
            _PATIENCE_S,
            poll_s=0.2,
        )


def _removal(stage: Stage, before: int, old: Sequence[str]) -> Removal:
    code = stage.topology("remove", "--from", f"{before}").code
    listed = json.loads(stage.broker.control("list_queues", "name", "--formatter", "json"))
    return Removal(code, [row["name"] for row in listed if row["name"] in old])
