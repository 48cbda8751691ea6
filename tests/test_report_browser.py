"""The pages in a headless Chromium: what a reader can do with them, on a phone, without a network, without scripts.

The browser is driven from a page that holds the others in frames, since their own policy lets no other script run.
"""

import json
import subprocess
from typing import Any

import pytest

from sbp_jax.report import compare, compare_page
from sbp_jax.report.runs import Run
from tests import planted_page

pytestmark = [pytest.mark.slow, pytest.mark.browser]
FRAMES = {"desk": (1280, ""), "phone": (390, ""), "still": (390, 'sandbox="allow-same-origin"'), "compared": (390, "")}
DRIVER = """<!DOCTYPE html><meta charset="utf-8"><title></title>
FRAMES
<pre id="told"></pre>
<script>
const wait = (time) => new Promise((done) => setTimeout(done, time));
const pages = {};
const listed = (page) => [...page.querySelectorAll("#triples-list .triple")];
const set = (form, name, value) => {
  form.elements[name].value = value;
  form.elements[name].dispatchEvent(new Event("input", { bubbles: true }));
};
const seen = (page) => [page.querySelector("#triples-count").textContent, listed(page).length];
addEventListener("load", async () => {
  await wait(300);
  const told = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = pages[frame.id] = frame.contentDocument;
    const root = page.documentElement;
    const wide = [...page.querySelectorAll("body *")].filter((element) => {
      const box = element.getBoundingClientRect();
      return box.right > root.clientWidth + 1 && !element.closest(".scroll, pre, nav, .skip");
    });
    const links = [...page.querySelectorAll("nav a")];
    told[frame.id] = {
      inner: frame.contentWindow.innerWidth, client: root.clientWidth, scrolled: root.scrollWidth,
      wide: wide.slice(0, 5).map((element) => element.outerHTML.slice(0, 120)),
      requests: frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name),
      unnamed: [...page.querySelectorAll("svg[role=img]")].filter((image) => !image.getAttribute("aria-label")).length,
      anchors: links.filter((link) => !page.querySelector(link.getAttribute("href"))).length,
      links: links.length,
    };
  }
  const page = pages.desk, form = page.querySelector("#triples-form");
  const all = JSON.parse(page.querySelector("#triples-data").textContent);
  told.all = all.length;
  told.start = seen(page);
  page.querySelector("#triples-more").click();
  told.more = [seen(page), page.activeElement.className];
  told.verdicts = {};
  for (const option of [...form.elements.verdict.options].slice(1)) {
    set(form, "verdict", option.value);
    const shown = listed(page).map((entry) => entry.querySelector(".facts b").textContent);
    told.verdicts[JSON.parse(option.value)] = [seen(page)[0], [...new Set(shown)]];
  }
  set(form, "verdict", "");
  set(form, "words", "written7 BOATS");
  told.search = [seen(page), listed(page).map((entry) => entry.textContent.includes("Written7 "))];
  set(form, "words", "no such word anywhere");
  told.nothing = seen(page);
  set(form, "words", "");
  set(form, "measure", "copied");
  set(form, "least", "1");
  told.range = [seen(page)[0], all.filter((entry) => entry.numbers.copied >= 0.01).length];
  set(form, "order", "copied");
  told.order = listed(page).map((entry) => Number(/ copied ([0-9.]+)%/.exec(entry.textContent)[1]));
  form.querySelector("button").click();
  await wait(50);
  told.reset = seen(page);
  set(form, "words", "written0 ");
  const marks = [...page.querySelectorAll("#triples-list mark")];
  told.marks = marks.map((mark) => [mark.className, mark.textContent].join("|"));
  told.foreign = page.querySelectorAll("#triples-list img, #triples-list script, .document b, .document img").length;
  told.shown = listed(page)[0].querySelector(".document:last-of-type") && listed(page)[0].textContent;
  told.unscripted = [pages.still.querySelectorAll("#triples-list .triple").length,
    getComputedStyle(pages.still.querySelector("#triples-form")).display, seen(pages.still)[0]];
  told.focusable = [...page.querySelectorAll(".scroll")].every((box) => box.tabIndex === 0);
  told.hacked = window.hacked === undefined;
  document.getElementById("told").textContent = JSON.stringify(told);
});
</script>"""
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--allow-file-access-from-files", "--enable-logging=stderr"),
    *("--dump-dom", "--virtual-time-budget=8000"),
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw, and `console`: what the browser logged of the pages."""
    folder = tmp_path_factory.mktemp("browser")
    summary, content = planted_page.render(folder / "inputs")
    (folder / "report.html").write_text(content)
    runs = [Run(name, name, summary, None, {}, None) for name in ("one", "an experiment with a long_name_that_goes_on")]
    (folder / "compare.html").write_text(compare_page.render(compare.compare(runs)))
    frames = "\n".join(
        f'<iframe id="{name}" src="{"compare" if name == "compared" else "report"}.html" {more}'
        f' style="width:{width}px;height:800px;border:0"></iframe>'
        for name, (width, more) in FRAMES.items()
    )
    (folder / "driver.html").write_text(DRIVER.replace("FRAMES", frames))
    command = [*CHROMIUM, f"--user-data-dir={folder / 'profile'}", str(folder / "driver.html")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert finished.returncode == 0, finished.stderr
    written = finished.stdout.partition('<pre id="told">')[2].partition("</pre>")[0]
    assert written, finished.stderr[-2000:]
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        written = written.replace(entity, character)
    return json.loads(written) | {"console": [line for line in finished.stderr.splitlines() if "CONSOLE" in line]}


@pytest.mark.parametrize("frame", list(FRAMES))
def test_nothing_scrolls_sideways_and_nothing_is_loaded(told: dict[str, Any], frame: str) -> None:
    """Guards phones, and readers without a network: tables scroll in their own boxes, and no request is made."""
    seen = told[frame]
    assert seen["inner"] == FRAMES[frame][0]
    assert seen["scrolled"] <= seen["client"] and seen["wide"] == []
    assert seen["requests"] == []


@pytest.mark.parametrize("frame", list(FRAMES))
def test_links_lead_somewhere_and_charts_have_names(told: dict[str, Any], frame: str) -> None:
    assert told[frame]["links"] >= 4 and told[frame]["anchors"] == 0 and told[frame]["unnamed"] == 0


def test_the_browser_has_nothing_to_complain_of(told: dict[str, Any]) -> None:
    """Guards the scripts, and the hash of the script in the page's policy; a frame without scripts may say so."""
    assert [line for line in told["console"] if "sandboxed" not in line] == []


def test_hostile_documents_are_text(told: dict[str, Any]) -> None:
    """Guards the escaping in the script's data and in what the script builds: tags of documents stay text."""
    assert told["hacked"] and told["foreign"] == 0
    assert planted_page.HOSTILE[0] in told["shown"]


def test_triples_are_shown_ten_by_ten(told: dict[str, Any]) -> None:
    assert told["all"] == 40
    assert told["start"] == ["40 of 40 triples match; 10 shown.", 10]
    assert told["more"] == [["40 of 40 triples match; 20 shown.", 20], "example triple"]  # which has the focus


def test_filters_leave_what_they_say(told: dict[str, Any]) -> None:
    """Guards each filter alone: verdict, words in any text, a range of a measure, the order, and all of them undone."""
    counts = {name: int(words.split()[0]) for name, (words, _) in told["verdicts"].items()}
    assert counts == {"accepted": 32, "unfinished": 4, "too_short": 2, "repetition": 1, "copied": 1}
    for name, (_, shown) in told["verdicts"].items():
        assert shown == [name.replace("_", " ")]
    assert told["search"] == [["1 of 40 triples match; 1 shown.", 1], [True]]
    assert told["nothing"] == ["None of 40 triples match.", 0]
    words, expected = told["range"]
    assert 0 < expected < 40 and words.startswith(f"{expected} of 40")
    assert told["order"] == sorted(told["order"], reverse=True)
    assert told["reset"] == told["start"]


def test_shared_runs_are_marked(told: dict[str, Any]) -> None:
    """Guards the marks: the run that seed, true pair and synthetic document have is marked in each."""
    kinds = {mark.partition("|")[0] for mark in told["marks"]}
    assert kinds == {"seed", "pair", "seed pair"}
    assert all(planted_page.SHARED in mark for mark in told["marks"])


def test_without_scripts_the_first_triples_are_there(told: dict[str, Any]) -> None:
    number, form, words = told["unscripted"]
    assert number == 3 and form == "none" and words == "The first 3; the others need JavaScript."


def test_tables_can_be_scrolled_with_the_keyboard(told: dict[str, Any]) -> None:
    assert told["focusable"]
