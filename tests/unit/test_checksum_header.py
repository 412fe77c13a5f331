"""The checksum as it comes from pika, whose wide integers are a class of their own."""

import numpy as np
from pika.compat import long

from consumer.message import Envelope, decode, encode


def test_a_checksum_that_amqp_sends_in_64_bits_is_accepted() -> None:
    tile = np.ones((1, 4, 4), np.float32)
    fields = {
        "store": "a.zarr",
        "array": "x",
        "axes": "YX",
        "shape": [4, 4],
        "tiles": [{"stitch_coords": [0, 0]}],
    }
    sent = encode(fields, [tile], checksum=True)
    checksum = long(sent.properties["headers"]["crc32c"])
    envelope = Envelope(
        "a.zarr", "tiles.v1", sent.properties["content_type"], headers={"crc32c": checksum}
    )
    assert len(decode(envelope, sent.body).tiles) == 1
