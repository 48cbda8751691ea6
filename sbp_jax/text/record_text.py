"""The text of a document made of a record's fields: "{question} {choices[gold]}".

A field is named in braces. Behind the name `.key` or `[key]` goes into a record or a list: a number is a place, counted
from 0, and the name of another field of the record stands for what that field says. {{ and }} are braces.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sbp_jax.errors import SbpError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_FIELD = re.compile(r"([^\[\].]+)((?:\.[^\[\].]+|\[[^\[\]]+\])*)")
_KEY = re.compile(r"\.([^\[\].]+)|\[([^\[\]]+)\]")


class Missing(Exception):
    """A record has no such field, or nothing in it."""


class NoText(Exception):
    """A field holds something other than a string or a number."""


@dataclass(frozen=True)
class RecordText:
    """A template, taken apart.

    Attributes:
      parts: plain text, and for each field its name and the keys that lead into it.
      given: a template of what stands before the text.
    """

    parts: tuple[str | tuple[str, ...], ...]
    given: "RecordText | None" = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that a record must have, each once."""
        own = (part[0] for part in self.parts if isinstance(part, tuple))
        return tuple(dict.fromkeys((*(self.given.fields if self.given else ()), *own)))

    @property
    def keys(self) -> tuple[str, ...]:
        """The names in brackets, each of which may be another field of the record."""
        paths = [part for part in self.parts if isinstance(part, tuple)]
        own = (key for path in paths for key in path[1:] if not key.isdecimal())
        return tuple(dict.fromkeys((*(self.given.keys if self.given else ()), *own)))

    def render(self, record: Mapping[str, Any]) -> str:
        """The text of one record.

        Raises:
          Missing: a field that it has not, or that is null.
          NoText: a list, a record or a truth value where text belongs.
        """
        return "".join(part if isinstance(part, str) else _text(record, part) for part in self.parts)


def parse(template: str, name: str) -> RecordText:
    """Takes a template apart.

    Args:
      name: of the config's field that holds it, for messages.

    Raises:
      SbpError: a brace without its partner, a name that is none, or no field at all.
    """
    parts: list[str | tuple[str, ...]] = []
    end = 0
    for piece in _PIECE.finditer(template):
        parts.append(template[end : piece.start()])
        end = piece.end()
        if piece[0] in ("{{", "}}"):
            parts.append(piece[0][0])
        elif piece[1] is None:
            raise SbpError(f"{name} is {template!r}: a brace has no partner; write {{{{ or }}}} for the character")
        elif (field := _FIELD.fullmatch(piece[1])) is None:
            raise SbpError(f"{name} is {template!r}: {{{piece[1]}}} names no field; write it as {{choices[0]}}")
        else:
            parts.append((field[1], *(key[1] or key[2] for key in _KEY.finditer(field[2]))))
    parts.append(template[end:])
    if not any(isinstance(part, tuple) for part in parts):
        raise SbpError(f"{name} is {template!r} and names no field of a record; such as {{text}}")
    return RecordText(tuple(part for part in parts if part))


def _text(record: Mapping[str, Any], path: tuple[str, ...]) -> str:
    name, *keys = path
    value = record.get(name)
    for place, key in enumerate(keys):
        value = _inside(record, value, key, _shown(path[: place + 2]))
    if value is None:
        raise Missing(f"{_shown(path)} is not there")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise NoText(f"{_shown(path)} is a {type(value).__name__}")
    return str(value)


def _inside(record: Mapping[str, Any], value: Any, key: str, shown: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(key)
    if not isinstance(value, list):
        raise Missing(f"{shown} is not there")
    place = int(key) if key.isdecimal() else record.get(key)
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(value):
        raise Missing(f"{shown} is not there: {key} is {place!r}, and the list has {len(value)} entries")
    return value[place]


def _shown(path: tuple[str, ...]) -> str:
    return path[0] + "".join(f"[{key}]" for key in path[1:])
