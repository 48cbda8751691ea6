"""How templates become pages: filters, the style sheet, and scripts that the page's own policy allows."""

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from sbp_jax.report.svg import compact

TEMPLATES = Path(__file__).parent / "templates"
LARGE = 1000  # values from which on digits behind the point say nothing
SHARES = {"share", "fraction", "%"}  # units that are shown as percentages


def environment() -> jinja2.Environment:
    """Everything that comes from outside is escaped; a name that is not there is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"count": "{:,}".format, "compact": compact, "loss": "{:.4f}".format, "percent": percent}
    made.filters |= {"signed": signed, "difference": difference, "label": label, "sentence": sentence, "value": value}
    made.globals |= {"policy": policy, "script": script}
    return made


def script(name: str) -> Markup:
    """A script of the page, as it stands between its tags."""
    content = (TEMPLATES / name).read_text()
    assert "</" not in content, "the end of a tag inside a script ends it"
    return Markup(content)


def policy(*names: str) -> str:
    """The content security policy of a page that runs these scripts alone and loads nothing from anywhere."""
    digests = [hashlib.sha256(script(name).encode()).digest() for name in names]
    sources = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"
    rest = "base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {sources}; {rest}"


def percent(number: float, decimals: int = 1) -> str:
    return f"{100 * number:z.{decimals}f}%".replace("-", "−")  # z: no minus before a zero


def signed(number: float, decimals: int = 4) -> str:
    return f"{number:+z.{decimals}f}".replace("-", "−")


def difference(number: float) -> str:
    """A signed number, such as a difference of perplexities, which go far."""
    return signed(number) if abs(number) < LARGE else f"{number:+.4g}".replace("-", "−")


def value(number: float | None, unit: str = "") -> str:
    """A measure in its unit; a share as a percentage."""
    if number is None:
        return ""
    if unit in SHARES:
        return percent(number)
    shown = f"{number:,.0f}" if 100 <= abs(number) < 1e6 else f"{number:.3g}"
    return shown.replace("-", "−")


def label(name: str) -> str:
    """A verdict or a split's name as words."""
    return name.replace("_", " ")


def sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
