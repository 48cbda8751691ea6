"""Writes docs/config.md and docs/commands.md anew, from the dataclasses and from the command line.

.venv/bin/python docs/reference.py
"""

import argparse
import ast
import inspect
import io
import re
import tokenize
from pathlib import Path

from sbp_jax import cli, config

HERE = Path(__file__).parent
EXPERIMENT = "Experiment"
COMMON = ("config", "set", "tiny", "workdir", "debug")
MADE = "<!-- made by docs/reference.py -->\n"


def config_page() -> str:
    """Every section of the config with every field: type, default, meaning."""
    source = inspect.getsource(config)
    tree, comments = ast.parse(source), _comments(source)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    sections = {_type(entry): _name(entry) for entry in _fields(classes[EXPERIMENT])}
    lines = [
        MADE,
        "# Every field of a config",
        "",
        "A config file returns an `Experiment` (`sbp_jax/config.py`); `--set section.field=value` replaces a field,"
        " typed and checked. `sbp config CONFIG` prints all of them as resolved, and the numbers that follow.",
        "",
    ]
    order = [EXPERIMENT, *(name for name in classes if name != EXPERIMENT)]
    for name in order:
        node = classes[name]
        where = next((f"`{section}`: " for kind, section in sections.items() if name in re.findall(r"\w+", kind)), "")
        lines += [f"## {name}", "", f"{where}{_doc(node)}", ""]
        lines += ["| field | type | default | |", "| --- | --- | --- | --- |"]
        for entry in _fields(node):
            cells = [f"`{_name(entry)}`", f"`{_type(entry)}`", _default(entry), _meaning(entry, node, comments)]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [entry for entry in node.body if isinstance(entry, ast.AnnAssign)]


def _name(entry: ast.AnnAssign) -> str:
    assert isinstance(entry.target, ast.Name)
    return entry.target.id


def _type(entry: ast.AnnAssign) -> str:
    return ast.unparse(entry.annotation)


def _doc(node: ast.ClassDef) -> str:
    text = " ".join((ast.get_docstring(node) or "").split("\n\nAttributes")[0].split())
    return text


def _default(entry: ast.AnnAssign) -> str:
    """As it is written; of a `field(...)` its default."""
    value = entry.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        value = given.get("default", given.get("default_factory"))
        if "default_factory" in given:
            return f"[its own](#{_type(entry).lower()})"
    return "required" if value is None else f"`{ast.unparse(value)}`"


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """The comment of each line, and whether it is all that the line holds."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = token.string.lstrip("# "), token.line.lstrip().startswith("#")
    return found


def _meaning(entry: ast.AnnAssign, node: ast.ClassDef, comments: dict[int, tuple[str, bool]]) -> str:
    """The comment behind a field, or those above it, or what the class says of the attribute."""
    behind = [comments[line][0] for line in range(entry.lineno, (entry.end_lineno or 0) + 1) if line in comments]
    above, line = [], entry.lineno - 1
    while line in comments and comments[line][1]:
        above.insert(0, comments[line][0])
        line -= 1
    if behind or above:
        return " ".join([*above, *behind])
    told = re.search(rf"^\s+{_name(entry)}: (.*?)(?=^\s+\w+: |\Z)", ast.get_docstring(node) or "", re.M | re.S)
    return " ".join(told[1].split()) if told else ""


def commands_page() -> str:
    """Every command with every option."""
    commands = _commands(cli._parser(), "sbp")
    first = commands[0][1]._actions
    lines = [MADE, "# Every command", "", "`sbp COMMAND --help` says the same. Nearly all take a config and these:", ""]
    lines += ["| | |", "| --- | --- |", *(_row(action) for action in first if action.dest in COMMON), ""]
    for name, command in commands:
        takes_config = any(action.dest == "config" for action in command._actions)
        lines += [f"## {name}{' CONFIG' if takes_config else ''}", "", f"{_sentence(command.description or '')}.", ""]
        actions = [
            action for action in command._actions if action.dest not in ("help", *(COMMON if takes_config else ()))
        ]
        if any(not isinstance(action, argparse._SubParsersAction) for action in actions):
            lines += ["| | |", "| --- | --- |"]
            lines += [_row(action) for action in actions]
            lines.append("")
    return "\n".join(lines)


def _commands(parser: argparse.ArgumentParser, name: str) -> list[tuple[str, argparse.ArgumentParser]]:
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                inner = _commands(command, f"{name} {word}")
                found += inner or [(f"{name} {word}", command)]
    return found


def _row(action: argparse.Action) -> str:
    return f"| {_usage(action)} | {_sentence(action.help or '')} |"


def _usage(action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices and not action.metavar else str(value)
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    return f"`{', '.join(action.option_strings)}{f' {value}' if value and action.nargs != 0 else ''}`"


def _sentence(text: str) -> str:
    text = " ".join(text.replace("%%", "%").split()).replace("|", "\\|")
    return text[:1].upper() + text[1:]


def main() -> None:
    (HERE / "config.md").write_text(config_page())
    (HERE / "commands.md").write_text(commands_page())


if __name__ == "__main__":
    main()
