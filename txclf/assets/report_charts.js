"use strict";
// Text from the data is written through textContent only; in charts it is escaped by plain(), because plotly renders some HTML.
// report_charts.js, report_run.js, report_search.js, report_results.js and report.js are joined into the one script of a page.
const content = JSON.parse(document.getElementById("content").textContent);
const queryAll = (root, selector) => [...root.querySelectorAll(selector)];
const query = (root, selector) => root.querySelector(selector);
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, max = 40) => { text = String(text); return text.length > max ? text.slice(0, max - 1) + "…" : text; };
const label = (text) => plain(short(text));
const percent = (value) => (100 * value).toFixed(1) + " %";
const figure = (value) => value === null || value === undefined ? "–" : typeof value !== "number" ? String(value)
  : Number.isInteger(value) ? value.toLocaleString("en") : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
  : Math.abs(value) >= 1e-3 || value === 0 ? value.toFixed(4) : value.toExponential(2);
const titles = { valid_loss: "validation loss", valid_calibrated_loss: "after calibration", train_loss: "training loss", valid_accuracy: "accuracy", valid_f1_macro: "macro F1",
  valid_f1_micro: "micro F1",
  valid_map: "mean average precision", tokens_per_second: "tokens per second", data_share: "share of time waiting for data", learning_rate: "learning rate" };
const title = (name) => titles[name] || name.replace(/^valid_/, "").replace(/_/g, " ");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const colors = (number) => color("c" + number % 8);
const charts = {};  // chart id → (element) => draws the chart; called again when colors or choices change

// ---- tables ----

function value(cell) {
  const text = cell.textContent.trim();
  const number = parseFloat(text.replace(/,/g, "").replace("−", "-"));
  return cell.classList.contains("num") ? (Number.isNaN(number) ? -Infinity : number) : text.toLowerCase();
}

function sortable(table) {
  const heads = queryAll(table, "thead th");
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    if (!head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = query(table, "tbody");
      const rows = queryAll(body, "tr").map((row) => [value(row.cells[column]), row]);
      rows.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1));
      body.append(...rows.map(([, row]) => row));
      table.dispatchEvent(new Event("sorted", { bubbles: true }));
    });
  });
}

const FIRST = 30;  // items of a list that are shown before "show all"

// Filters items by the search field and by keeps(item), and shows their number. Returns the function that applies the filter.
function filtered(section, items, keeps) {
  const find = query(section, "[data-find]"), count = query(section, "[data-count]");
  const texts = items.map((item) => item.textContent.toLowerCase());
  const more = document.createElement("button");
  let all = false;
  more.type = "button";
  more.dataset.more = "";
  if (items.length) (items[0].closest("table") || items[0].parentElement).after(more);
  const apply = () => {
    const term = find.value.trim().toLowerCase(), inner = items.length ? [...items[0].parentElement.children] : [];
    let found = 0;
    for (const item of inner) {  // in the order of the table, which may be sorted
      const fits = texts[items.indexOf(item)].includes(term) && keeps(item);
      found += fits ? 1 : 0;
      item.hidden = !fits || (!all && found > FIRST);
    }
    more.hidden = all || found <= FIRST;
    more.textContent = "Show all " + found;
    count.textContent = found === items.length ? found + (found === 1 ? " row" : " rows") : found + " of " + items.length + " rows";
  };
  more.addEventListener("click", () => { all = true; apply(); });
  section.addEventListener("sorted", apply);
  find.addEventListener("input", apply);
  apply();
  return apply;
}

// On a phone the cells of a row are below each other, each with the name of its column.
function labelled(table) {
  const heads = queryAll(table, "thead th").map((head) => head.textContent);
  table.classList.add("cards");
  table.setAttribute("role", "table");
  for (const row of queryAll(table, "tr")) {
    row.setAttribute("role", "row");
    [...row.cells].forEach((cell, column) => {
      cell.setAttribute("role", cell.tagName === "TD" ? "cell" : "columnheader");
      if (cell.tagName === "TD") cell.dataset.head = heads[column];
    });
  }
}

function options(select, values) {
  for (const text of values) {
    const option = document.createElement("option");
    option.value = text;
    option.textContent = short(text, 60);
    select.append(option);
  }
}

// ---- charts ----

function layout(x, y, more = {}) {
  const axis = { gridcolor: color("grid"), zerolinecolor: color("grid"), linecolor: color("line"), automargin: true, exponentformat: "none", separatethousands: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: color("text"), size: 12 },
    margin: { l: 50, r: 12, t: more.title ? 34 : 12, b: 40 }, hovermode: "closest", showlegend: true,
    legend: { orientation: "h", y: -0.2, x: 0, font: { size: 11 } },
    hoverlabel: { bgcolor: color("panel"), bordercolor: color("line"), font: { color: color("text") }, align: "left" },
    ...more,
    title: more.title ? { text: more.title, font: { size: 14 }, x: 0, xanchor: "left", pad: { l: 8 } } : undefined,
    xaxis: { ...axis, title: { text: x, standoff: 6 }, ...more.xaxis }, yaxis: { ...axis, title: { text: y, standoff: 6 }, ...more.yaxis },
  };
}

// Buttons are listed, because plotly's own choice has one that uploads the chart.
const BUTTONS = [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
window.open = () => null;  // the Content-Security-Policy of a file cannot forbid windows

function plot(element, traces, shape) {
  return Plotly.react(element, traces, shape, { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtons: BUTTONS,
    plotlyServerURL: "" });
}

const verticalLine = (x, text) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { dash: "dash", width: 1, color: color("soft") }, label: { text, textangle: 0, textposition: "end", xanchor: "left", font: { size: 11, color: color("soft") } } });

function curve(element, heading, named, more = {}) {
  const by = Number(document.getElementById("axis").value);
  const traces = named.map(([name, points, number, dash]) => ({
    type: "scatter", mode: points.length < 60 ? "lines+markers" : "lines", name: label(name), x: points.map((p) => p[by]), y: points.map((p) => p[2]),
    line: { color: colors(number), width: 1.8, dash }, marker: { size: 4 }, hovertemplate: "%{x}: %{y:.5~g}",
  }));
  return plot(element, traces, layout(by ? "epoch" : "step", "", { title: heading, ...more }));
}
