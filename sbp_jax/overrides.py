"""Typed overrides of an experiment's fields, such as `training.peak_lr=3e-3` or `arms.sbp.synthetic_share=0.25`."""

import dataclasses
import difflib
import math
import types
import typing
from typing import Any

from sbp_jax.arms import chosen
from sbp_jax.config import Arm
from sbp_jax.errors import SbpError


def override(experiment: Any, assignment: str) -> Any:
    """The experiment with one field replaced; `arms` itself takes names, of its own arms or of standard ones.

    Raises:
      SbpError: there is no such field, or the value has the wrong type.
    """
    path, equals, text = assignment.partition("=")
    if not equals:
        raise SbpError(f"--set {assignment}: expected FIELD=VALUE, such as --set training.peak_lr=3e-3")
    return _replace(experiment, path.strip().split("."), text.strip(), path.strip())


def _replace(owner: Any, names: list[str], text: str, path: str) -> Any:
    if isinstance(owner, tuple):  # of named entries, such as the arms
        index = _find(names[0], [entry.name for entry in owner], path)
        entry = _replace(owner[index], names[1:], text, path) if names[1:] else _no_value(path, owner[index])
        return (*owner[:index], entry, *owner[index + 1 :])
    fields = {field.name: field for field in dataclasses.fields(owner)}
    name = list(fields)[_find(names[0], list(fields), path)]
    value, kind = getattr(owner, name), typing.get_type_hints(type(owner))[name]
    optional = typing.get_args(kind) if typing.get_origin(kind) is types.UnionType else ()
    groups = [group for group in optional if isinstance(group, type) and dataclasses.is_dataclass(group)]
    if value is None and groups and names[1:]:  # setting a field of a group that is off turns it on
        value = groups[0]()
    member = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
    named_entries = dataclasses.is_dataclass(member)
    if member and fields[name].metadata.get("grows") and names[1:] and names[1] not in [entry.name for entry in value]:
        value = (*value, member(names[1]))
    if member is Arm and not names[1:]:
        new = chosen(value, [part.strip() for part in text.split(",") if part.strip()])
    elif groups and not names[1:] and text.lower() in ("none", "null"):
        new = None
    elif dataclasses.is_dataclass(value) or groups or named_entries:
        new = _replace(value, names[1:], text, path) if names[1:] else _no_value(path, groups[0] if groups else value)
    elif names[1:]:
        raise SbpError(f"--set {path}: {name} is a value and has no field {names[1]}")
    else:
        new = _parse(text, kind, path)
    return dataclasses.replace(owner, **{name: new})


def _find(name: str, names: list[str], path: str) -> int:
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
    raise SbpError(f"--set {path}: there is no field {name}; {hint}")


def _no_value(path: str, owner: Any) -> Any:
    if isinstance(owner, tuple) and not owner:
        raise SbpError(f"--set {path}: name an entry and one of its fields, such as {path}.NAME.FIELD=...")
    if isinstance(owner, tuple):
        inside = ", ".join(entry.name for entry in owner)
    else:
        inside = ", ".join(field.name for field in dataclasses.fields(owner))
    raise SbpError(f"--set {path}: {path} is a group of fields; set one of them: {inside}")


def _parse(text: str, kind: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if text.lower() in ("none", "null"):
            return None
        return _parse(text, next(argument for argument in arguments if argument is not type(None)), path)
    if origin is tuple:
        return tuple(_parse(part.strip(), arguments[0], path) for part in text.split(",") if part.strip())
    if kind is bool:
        values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in values:
            raise SbpError(f"--set {path}={text}: expected true or false")
        return values[text.lower()]
    if kind is str:
        return text
    try:
        return kind(text.replace("_", ""))
    except ValueError:
        pass
    if kind is int and _is_whole(text):
        return int(float(text))
    raise SbpError(f"--set {path}={text}: expected {'a whole number' if kind is int else 'a number'}")


def _is_whole(text: str) -> bool:
    """Whether the text is a whole number in scientific notation, such as 2e11."""
    try:
        return float(text).is_integer()
    except ValueError:
        return False


def check_types(value: Any, path: str = "") -> None:
    """Raises `SbpError` for a field, at any depth, whose value is not of its type; Python itself does not look."""
    for name, kind in typing.get_type_hints(type(value)).items():
        _check_type(getattr(value, name), kind, f"{path}{name}")


def _check_type(value: Any, kind: Any, path: str) -> None:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is not None:
            _check_type(value, next(argument for argument in arguments if argument is not type(None)), path)
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise SbpError(f"{path} is {value!r}; it must be a tuple, such as ({value!r},)")
        for index, entry in enumerate(value):
            _check_type(entry, arguments[0], f"{path}.{getattr(entry, 'name', index)}")
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise SbpError(f"{path} is {value!r}; it must be a number")
    elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SbpError(f"{path} is {value!r}; it must be of type {kind.__name__}")
    elif dataclasses.is_dataclass(value):
        check_types(value, f"{path}.")
