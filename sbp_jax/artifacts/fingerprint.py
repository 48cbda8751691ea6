"""Fingerprints of the user's input files, remembered so that unchanged files are hashed once."""

import json
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from sbp_jax.artifacts.artifact import checksum, read_json
from sbp_jax.errors import SbpError


def fingerprint(files: Sequence[epath.Path], memory: epath.Path) -> list[list[Any]]:
    """Name, bytes and checksum of each file.

    Where the files lie does not matter: a name is the path below the folder that all of them share.

    Args:
      files: the files.
      memory: JSON file that remembers checksums by path, size and time of modification.

    Raises:
      SbpError: a file is missing or cannot be read.
    """
    remembered = read_json(memory)
    remembered = remembered if isinstance(remembered, dict) else {}
    known = dict(remembered)
    shared = os.path.commonpath([file.parent for file in files]) if files else ""
    result = []
    try:
        for file in files:
            status = os.stat(file)
            entry = f"{file}|{status.st_size}|{status.st_mtime_ns}"
            if entry not in known:
                known[entry] = checksum(file)
            result.append([os.path.relpath(file, shared), status.st_size, known[entry]])
    except FileNotFoundError as error:
        raise SbpError(f"{error.filename} is missing; check the paths in the config") from error
    except OSError as error:
        raise SbpError(f"{error.filename} cannot be read ({error.strerror}); check the paths in the config") from error
    if known != remembered and memory.parent.exists():
        memory.write_text(json.dumps(known, indent=1))
    return result
