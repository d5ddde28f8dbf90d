"use strict";
// The page's own script: charts, tables, and the browser of responses. Texts of models reach the page as text nodes
// alone (textContent), never as HTML.

const read = (id) => JSON.parse(document.getElementById(id).textContent);

/** An element with attributes, and children that are elements or texts. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const button = (text, onclick) => make("button", { type: "button", onclick }, text);

function checkbox(checked, onchange) {
  const box = make("input", { type: "checkbox", onchange });
  box.checked = checked;
  return box;
}

function choice(label, options, change) {
  const select = make("select", { onchange: () => change(select.value) });
  options.forEach(([value, text]) => select.append(make("option", { value }, text)));
  return [make("label", {}, `${label} `, select), select];
}

// ---- charts

const CONFIG = { // the buttons are named one by one: by default one of them sends a chart to Plotly's servers
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"]],
};

function drawChart(figure, chart) {
  const plot = figure.querySelector(".plot");
  const controls = make("div", { class: "controls" });
  const lines = make("details", {}, make("summary", {}, "Choose what is shown"));
  const hidden = new Set(); // names of the legend that are switched off, kept when the axis changes
  const bands = checkbox(true, () => draw());
  let view = chart.views[0];

  const nameOf = (trace) => trace.legendgroup || trace.name;
  const isBand = (trace) => trace.fill === "toself";
  const isOff = (trace) => hidden.has(nameOf(trace)) || (isBand(trace) && !bands.checked);
  const shown = (trace) => ({ ...trace, visible: !isOff(trace) || (isBand(trace) ? false : "legendonly") });
  const draw = () => Plotly.react(plot, view.data.map(shown), view.layout, CONFIG);

  function listLines() {
    const names = [...new Set(view.data.filter((t) => t.name && t.showlegend !== false).map(nameOf))];
    const boxes = names.map((name) => {
      const box = checkbox(!hidden.has(name), () => {
        if (box.checked) hidden.delete(name);
        else hidden.add(name);
        draw();
      });
      return make("label", {}, box, ` ${plain(name)}`);
    });
    const setAll = (off) => {
      names.forEach((name) => (off ? hidden.add(name) : hidden.delete(name)));
      listLines();
      draw();
    };
    const buttons = [button("all", () => setAll(false)), button("none", () => setAll(true))];
    lines.replaceChildren(lines.firstChild, make("div", { class: "boxes" }, ...buttons, ...boxes));
    lines.hidden = names.length < 2;
  }

  if (chart.views.length > 1) {
    const [label] = choice("Show", chart.views.map(({ label }, i) => [i, label]), (i) => {
      view = chart.views[i];
      listLines();
      draw();
    });
    controls.append(label);
  }
  if (view.data.some(isBand)) controls.append(make("label", {}, bands, " bands"));
  controls.append(lines);
  figure.insertBefore(controls, plot);
  listLines();
  const follow = () => {
    plot.data.filter((trace) => !isBand(trace)).forEach((trace) => {
      if (trace.visible === "legendonly") hidden.add(nameOf(trace));
      else hidden.delete(nameOf(trace));
    });
    listLines();
  };
  const DOUBLE_CLICK = 400; // milliseconds after which Plotly has told a double click from two
  draw().then(() => plot.on("plotly_legendclick", () => void setTimeout(follow, DOUBLE_CLICK)));
}

/** The few entities that names are written with for Plotly. */
const plain = (text) => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");

const charts = read("charts");
document.querySelectorAll("figure[data-chart]").forEach((figure) => drawChart(figure, charts[figure.dataset.chart]));

const PRINTED = 980; // pixels of a landscape page of A4 or Letter between its margins
const plots = () => document.querySelectorAll(".plot");
const resize = (layout) => () => plots().forEach((plot) => Plotly.relayout(plot, layout));
window.addEventListener("beforeprint", resize({ width: PRINTED, autosize: false }));
window.addEventListener("afterprint", resize({ width: null, autosize: true }));

// ---- tables

/** The number that a cell begins with, or null. */
function numberOf(text) {
  const found = /^[<\s]*([+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?)/i.exec(text);
  return found && Number(found[1].replaceAll(",", ""));
}

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, i) => row.cells[i].textContent.trim();
  heads.forEach((head, i) => {
    const sort = make("button", { type: "button" }, ...head.childNodes);
    head.append(sort);
    sort.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows];
      const numeric = rows.every((row) => key(row, i) === "" || numberOf(key(row, i)) !== null);
      const order = (a, b) => (numeric ? numberOf(a) - numberOf(b) : a.localeCompare(b, undefined, { numeric: true }));
      rows.sort((a, b) => {
        const [x, y] = [key(a, i), key(b, i)];
        if (x === "" || y === "") return (x === "") - (y === ""); // empty cells stay last
        return down ? order(y, x) : order(x, y);
      });
      body.append(...rows);
    });
  });
}

function filterable(table) {
  const count = make("span", { class: "count", role: "status" });
  const filter = () => {
    const wanted = input.value.toLowerCase();
    const rows = [...table.tBodies[0].rows];
    rows.forEach((row) => (row.hidden = !row.textContent.toLowerCase().includes(wanted)));
    count.textContent = wanted ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
  };
  const input = make("input", { type: "search", placeholder: "part of a row", oninput: filter });
  table.closest(".scroll").before(make("div", { class: "controls" }, make("label", {}, "Filter ", input), count));
}

document.querySelectorAll("table.sortable").forEach((table) => {
  sortable(table);
  if (table.tBodies[0].rows.length > 5) filterable(table);
});

// ---- estimators: cells that differ from the chosen stage's

function markDifferences(table) {
  const rows = [...table.tBodies[0].rows];
  const names = [...table.tHead.rows[0].cells].slice(1).map((cell) => cell.textContent);
  const only = checkbox(false, () => mark());
  const [label, select] = choice("Compare with", names.map((name, i) => [i + 1, name]), () => mark());
  function mark() {
    rows.forEach((row) => {
      const own = row.cells[select.value].textContent;
      const cells = [...row.cells].slice(1);
      cells.forEach((cell) => cell.classList.toggle("differs", cell.textContent !== own));
      row.hidden = only.checked && cells.every((cell) => cell.textContent === own);
    });
  }
  const controls = make("div", { class: "controls" }, label, make("label", {}, only, " only rows that differ"));
  table.closest(".scroll").before(controls);
  mark();
}
document.querySelectorAll("table.estimators").forEach(markDifferences);

// ---- responses

const PAGE = 20;
const CONTROL = /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

function browseResponses(box, data) {
  const rows = data.rows.map((row) => Object.fromEntries(data.fields.map((name, i) => [name, row[i]])));
  const form = box.querySelector(".controls");
  const list = box.querySelector(".list");
  const status = box.querySelector(".status");
  let found = rows;
  let page = 0;

  /** Characters that act on a terminal, or turn the direction of the text around, as their numbers: \u001b. */
  const visible = (text) => text.replace(CONTROL, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const count = (number) => number.toLocaleString("en");
  const cut = (text, all) => visible(text) + (all > data.most_characters ? `\n[cut: ${count(all)} characters in all]` : "");
  const distinct = (name) => [...new Set(rows.map((row) => row[name]))];
  const options = (values, all) => [["", all], ...values.map((value) => [String(value), String(value)])];
  const controls = {};
  const add = (name, label, choices) => {
    const [element, select] = choice(label, choices, search);
    controls[name] = select;
    form.append(element);
  };

  add("stage", "Stage", options(distinct("stage"), "all"));
  add("seed", "Seed", options(distinct("seed").sort((a, b) => a - b), "all"));
  add("right", "Graded", [["", "all"], ["1", "right"], ["0", "wrong"]]);
  add("kind", "Sampled", [["", "all"], ["greedy", "greedy"], ["sampled", "at the study’s temperature"]]);
  controls.text = make("input", { type: "search", placeholder: "in prompt or response", oninput: () => search() });
  form.append(make("label", {}, "Text ", controls.text));
  const previous = button("Previous", () => turn(-1));
  const next = button("Next", () => turn(1));
  form.append(previous, next);

  function search() {
    const wanted = controls.text.value.toLowerCase();
    const equal = (name, value) => controls[name].value === "" || controls[name].value === String(value);
    const has = (text) => text.toLowerCase().includes(wanted);
    found = rows.filter((row) =>
      equal("stage", row.stage) && equal("seed", row.seed) && equal("right", row.right) &&
      equal("kind", row.sample < 0 ? "greedy" : "sampled") &&
      (has(row.text) || has(data.prompts[row.prompt].text)));
    page = 0;
    show();
  }

  function turn(by) {
    page += by;
    show();
    box.scrollIntoView({ block: "start" });
  }

  function show() {
    const first = page * PAGE;
    previous.disabled = page === 0;
    next.disabled = first + PAGE >= found.length;
    const last = Math.min(first + PAGE, found.length);
    const words = `${count(first + 1)} to ${count(last)} of ${count(found.length)} responses`;
    status.textContent = found.length ? words : "No response fits.";
    list.replaceChildren(...found.slice(first, first + PAGE).map(item));
  }

  function item(row) {
    const prompt = data.prompts[row.prompt];
    const facts = [`seed ${row.seed}`, prompt.id, row.sample < 0 ? "greedy" : `sample ${row.sample}`];
    facts.push(`answer read: ${row.read ?? "none"}`);
    if (prompt.gold) facts.push(`right answer: ${prompt.gold}`);
    if (row.tokens !== null) facts.push(`${row.tokens} tokens${row.truncated ? ", truncated" : ""}`);
    const verdict = make("span", { class: row.right ? "right" : "wrong" }, row.right ? "✓ right" : "✗ wrong");
    const note = make("span", { class: "note" }, facts.map(visible).join(" · "));
    return make("article", {},
      make("p", {}, make("strong", {}, row.stage), " ", verdict, " ", note),
      make("pre", { class: "prompt" }, cut(prompt.text, prompt.characters)),
      make("pre", {}, cut(row.text, row.characters)));
  }
  show();
}

document.querySelectorAll(".browser").forEach((box) => browseResponses(box, read("responses-data")));
