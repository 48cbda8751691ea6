"""The documents: links lead somewhere, commands are commands, fields are fields, the reference is that of the code."""

import dataclasses
import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest

from sbp_jax import cli
from sbp_jax.config import Experiment
from sbp_jax.experiments import load_module
from sbp_jax.report import compare_command

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
SHELL = "|&;<>"  # past them another program begins


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^(```.*?^```|    .*?$)", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    heads = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", head).lower() for head in heads)
    return {re.sub(r"[^\w\- ]", "", head).strip().replace(" ", "-") for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(found), f"{target}: headings are {sorted(anchors(found))}"


def commands(page: Path) -> list[list[str]]:
    """The `sbp` commands of a page's blocks of code, lines that are continued put together."""
    blocks = re.findall(r"^```.*?\n(.*?)^```|((?:^    .*\n)+)", page.read_text(), flags=re.M | re.S)
    lines = "\n".join(fenced or indented for fenced, indented in blocks).replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=SHELL)
            lexer.whitespace_split = True
            words = list(takewhile(lambda word: not set(word) <= set(SHELL), lexer))
        except ValueError:  # an apostrophe in what is no command
            continue
        if words and words[0] in ("sbp", ".venv/bin/sbp") and len(words) > 1 and "..." not in words[1:]:
            found.append(words[1:])
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=named)
def test_commands_are_commands_and_fields_are_fields(page: Path, capsys: pytest.CaptureFixture) -> None:
    for words in commands(page):
        words = compare_command.spelled([re.sub(r"^N$", "1", word.strip("[]")) for word in words])
        words = [cli.INSPECT, *words[2:]] if words[:2] == cli.INSPECT.split() else words
        try:
            options = cli._parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"sbp {' '.join(words)}: {capsys.readouterr().err.splitlines()[-1]}")
        for assignment in getattr(options, "set", None) or ():  # $'...' of the shell leaves its sign
            assert is_field(assignment.removeprefix("$").partition("=")[0]), f"sbp {' '.join(words)}: {assignment}"


def is_field(path: str) -> bool:
    """Whether an experiment has it; what stands behind the name of an entry, such as an arm, is not looked at."""
    kind: object = Experiment(name="any")
    for name in path.split("."):
        if not dataclasses.is_dataclass(kind):
            return isinstance(kind, tuple)
        if name not in {field.name for field in dataclasses.fields(kind)}:
            return False
        kind = getattr(kind, name)
    return True


@pytest.mark.parametrize("name", ["config", "commands"])
def test_the_reference_is_what_the_code_says(name: str) -> None:
    script = load_module("docs/reference.py")
    assert (ROOT / f"docs/{name}.md").read_text() == getattr(script, f"{name}_page")(), "run docs/reference.py"
