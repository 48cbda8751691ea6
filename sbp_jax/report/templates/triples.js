"use strict";
(() => {
  const all = JSON.parse(document.getElementById("triples-data").textContent);
  const list = document.getElementById("triples-list");
  const form = document.getElementById("triples-form");
  const count = document.getElementById("triples-count");
  const more = document.getElementById("triples-more");
  const STEP = 10;
  const KINDS = ["", "seed", "pair", "seed pair", "gap"];
  const PERCENT = new Set(["copied", "repetition", "seed_overlap"]);
  const WORDS = {
    words: "words", copied: "copied", repetition: "repeated", seed_overlap: "shared with the seed",
    seed_common: "longest run shared with the seed (words)", pair_similarity: "similarity of seed and true pair",
    logprob: "log probability of a token",
  };
  const text = (flat) => flat ? flat.filter((_, place) => place % 2).join("") : "";
  for (const entry of all) {
    entry.search = [entry.id, entry.seed, entry.target, entry.source, ...entry.texts.map(text)].join("\n").toLowerCase();
  }

  const make = (tag, content = "", css = "") => {
    const element = document.createElement(tag);
    element.textContent = content;
    if (css) element.className = css;
    return element;
  };
  const number = (name, value) => PERCENT.has(name)
    ? (100 * value).toFixed(1) + "%" : String(Number(value.toPrecision(4))).replace("-", "−");

  const side = (title, id, flat) => {
    const box = make("div");
    box.append(make("h4", id ? title + ": " + id : title));
    const content = make("div", "", "document");
    if (!flat) content.append(make("span", "none", "gap"));
    for (let place = 0; flat && place < flat.length; place += 2) {
      const kind = KINDS[flat[place]];
      if (!kind) content.append(document.createTextNode(flat[place + 1]));
      else if (kind === "gap") content.append(make("span", flat[place + 1], "gap"));
      else content.append(make("mark", flat[place + 1], kind));
    }
    box.append(content);
    return box;
  };
  const show = (entry) => {
    const box = make("article", "", "example triple");
    const head = make("p", "", "facts");
    head.append(make("b", entry.verdict.replaceAll("_", " "), entry.verdict === "accepted" ? "yes" : "no"));
    const facts = Object.entries(entry.numbers).map(([name, value]) => WORDS[name] + " " + number(name, value));
    head.append(" · " + ["finish: " + entry.finish, ...facts].join(" · "));
    const sides = make("div", "", "sides three");
    sides.append(side("Seed", entry.seed, entry.texts[0]), side("True pair", entry.target, entry.texts[1]),
      side("Synthetic", entry.id, entry.texts[2]));
    box.append(head, sides, make("p", (entry.source ? "source " + entry.source + "; " : "") + entry.lineage, "lineage"));
    return box;
  };

  const fill = (select, values) => {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
    for (const [value, seen] of [...counts].sort((a, b) => b[1] - a[1])) {
      const option = make("option", (value === null ? "none" : String(value).replaceAll("_", " ")) + " (" + seen + ")");
      option.value = JSON.stringify(value);
      select.append(option);
    }
  };
  for (const name of ["verdict", "finish", "source"]) fill(form.elements[name], all.map((entry) => entry[name]));
  const measured = Object.keys(WORDS).filter((name) => all.some((entry) => name in entry.numbers));
  for (const name of measured) {
    for (const select of [form.elements.measure, form.elements.order]) {
      const option = make("option", (select === form.elements.order ? "most: " : "") + WORDS[name]);
      option.value = name;
      select.append(option);
    }
  }

  let found = all;
  let visible = STEP;
  const draw = () => {
    list.replaceChildren(...found.slice(0, visible).map(show));
    const shown = Math.min(visible, found.length);
    count.textContent = found.length === 0 ? "None of " + all.length + " triples match."
      : found.length + " of " + all.length + " triples match; " + shown + " shown.";
    more.hidden = shown >= found.length;
  };
  const bound = (input, percent) => input.value === "" ? null : Number(input.value) / (percent ? 100 : 1);
  const filter = () => {
    const { verdict, finish, source, measure, least, most, words, order } = form.elements;
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const low = bound(least, PERCENT.has(measure.value)), high = bound(most, PERCENT.has(measure.value));
    const same = (select, value) => select.value === "" || JSON.stringify(value) === select.value;
    found = all.filter((entry) => {
      const value = entry.numbers[measure.value];
      return same(verdict, entry.verdict) && same(finish, entry.finish) && same(source, entry.source)
        && wanted.every((word) => entry.search.includes(word))
        && (low === null || value >= low) && (high === null || value <= high);
    });
    if (order.value) {
      const by = (entry) => entry.numbers[order.value] ?? -Infinity;
      found = [...found].sort((a, b) => by(b) - by(a));
    }
    visible = STEP;
    draw();
  };
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const next = visible;
    visible += STEP;
    draw();
    const first = list.children[next];
    if (first) { first.tabIndex = -1; first.focus({ preventScroll: true }); }
  });
  form.hidden = false;
  filter();
})();
