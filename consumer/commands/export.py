"""Writes parked messages to files: the body as it was sent, and beside it what is known of it."""

import json
import os
import re
from pathlib import Path
from typing import Any

from consumer.parked import ParkedMessage


def export(message: ParkedMessage, folder: Path, known: dict[str, Any]) -> None:
    """Write `<id>.body` and `<id>.json` into a folder; neither is ever there in part."""
    # The id stands in a header, which anybody may have written.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", message.id)[:100].lstrip(".") or "_"
    _write(folder / f"{name}.body", message.body)
    text = json.dumps(known, indent=2, ensure_ascii=False, default=str)
    _write(folder / f"{name}.json", f"{text}\n".encode(errors="replace"))


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
