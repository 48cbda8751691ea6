"""What a shard in the making has finished: a line for each document, written as soon as it is done.

A line is a checksum and a JSON object. One that was cut off by a kill does not match its checksum, and it and what
follows it count as not written.
"""

import json
from typing import Any

import xxhash
from etils import epath


class Journal:
    """The finished rows of one shard.

    Attributes:
      rows: by their ordinals, those of earlier runs included.
    """

    def __init__(self, path: epath.Path):
        """Opens or makes the journal; what an earlier run wrote and did not finish writing is cut off."""
        self.rows: dict[int, dict[str, Any]] = {}
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = 0
        if path.exists():
            with path.open("rb") as stream:
                for line in stream:
                    row = _row(line)
                    if row is None:
                        break
                    self.rows[row["ordinal"]] = row
                    whole += len(line)
            if whole < path.stat().length:
                with open(path, "r+b") as stream:
                    stream.truncate(whole)
        self._file = open(path, "ab", buffering=0)  # a line is handed to the system at once

    def add(self, row: dict[str, Any]) -> None:
        content = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        self._file.write(f"{xxhash.xxh3_64_hexdigest(content)} ".encode() + content + b"\n")
        self.rows[row["ordinal"]] = row

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        """Removes the file, once its rows are kept elsewhere."""
        self.close()
        self._path.unlink(missing_ok=True)


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line; None for one that was cut off or damaged."""
    checksum, _, content = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != xxhash.xxh3_64_hexdigest(content).encode():
        return None
    row: dict[str, Any] = json.loads(content.decode("utf-8", "surrogatepass"))
    return row
