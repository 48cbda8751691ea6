"""Fingerprints of the user's input files, remembered so that unchanged files are hashed once."""

import json
from collections.abc import Iterable
from typing import Any

from etils import epath

from sbp_jax.artifacts.artifact import checksum, read_json


def fingerprint(files: Iterable[epath.Path], memory: epath.Path) -> list[list[Any]]:
    """Name, bytes and checksum of each file; the place of a file does not matter, its content does.

    Args:
      files: the files, all existing.
      memory: JSON file that remembers checksums by path, size and time of modification.
    """
    known = read_json(memory) or {}
    result = []
    for file in files:
        status = file.stat()
        entry = f"{file}|{status.length}|{status.mtime}"
        if entry not in known:
            known[entry] = checksum(file)
        result.append([file.name, status.length, known[entry]])
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(json.dumps(known, indent=1))
    return result
