"""A model of RabbitMQ: one queue with a single active consumer, and a channel for each owner.

The queue may go over to another owner while the first still holds deliveries. Either the broker
knows that one still, and what it settles counts; or it has given up the connection, which its owner
has yet to notice: the deliveries are in the queue again, and nothing that it asks is answered.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from choices import Number
from plan import Letter

from consumer.blocks import DeliveryId


@dataclass(eq=False, slots=True)
class Post:
    """A message in the broker's hands.

    Attributes
    ----------
    count : int
        How often it was delivered.
    since, moment
        When it was last: in seconds, and as a number.
    """

    letter: Letter
    count: int = 0
    since: float = 0.0
    moment: int = 0


@dataclass(eq=False, slots=True)
class Channel:
    """A channel, as its owner sees it.

    Attributes
    ----------
    linked : bool
        Whether the broker knows it still.
    unacked : dict
        What was delivered and not settled.
    asked : deque
        What waits for an answer.
    """

    number: int
    linked: bool = True
    unacked: dict[DeliveryId, Post] = field(default_factory=dict)
    asked: deque[Callable[[bool], None]] = field(default_factory=deque)
    tags: "count[int]" = field(default_factory=lambda: count(1))


class Queue:
    """The queue."""

    def __init__(self) -> None:
        self.posts: deque[Post] = deque()

    def publish(self, letter: Letter) -> None:
        """Put a message at the end."""
        self.posts.append(Post(letter))

    def deliver(self, channel: Channel, now: float, moment: int) -> tuple[DeliveryId, Post]:
        """Deliver the first message."""
        post = self.posts.popleft()
        post.since, post.moment = now, moment
        identity = DeliveryId(channel.number, next(channel.tags))
        channel.unacked[identity] = post
        return identity, post

    def requeue(self, channel: Channel, number: Number) -> None:
        """Take back what was delivered on a channel, if that is not done already."""
        if not channel.linked:
            return
        channel.linked = False
        last = number.below(2)
        letters = [post.letter for post in channel.unacked.values()]
        counts = [post.count + 1 for post in channel.unacked.values()]
        order = number.order([letter.number for letter in letters])
        again = [Post(letters[i], counts[i]) for i in order]
        if last:
            self.posts.extend(again)
        else:
            self.posts.extendleft(reversed(again))
