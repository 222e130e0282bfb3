"use strict";
// Text of the data reaches the page by textContent alone, and a chart by plain(): plotly reads a little HTML in labels.
const content = JSON.parse(document.getElementById("content").textContent);
const all = (where, what) => [...where.querySelectorAll(what)];
const one = (where, what) => where.querySelector(what);
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most = 40) => { text = String(text); return text.length > most ? text.slice(0, most - 1) + "…" : text; };
const label = (text) => plain(short(text));
const percent = (value) => (100 * value).toFixed(1) + " %";
const figure = (value) => value === null || value === undefined ? "–" : typeof value !== "number" ? String(value)
  : Number.isInteger(value) ? value.toLocaleString("en") : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
  : Math.abs(value) >= 1e-3 || value === 0 ? value.toFixed(4) : value.toExponential(2);
const titles = { valid_loss: "validation loss", train_loss: "training loss", valid_accuracy: "accuracy", valid_f1_macro: "macro F1",
  tokens_per_second: "tokens/s", data_share: "share", learning_rate: "learning rate" };
const title = (name) => titles[name] || name.replace(/^valid_/, "").replace(/_/g, " ");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const colors = (number) => color("c" + number % 8);
const charts = {};  // by name: (element) => draws it, now and whenever colours or choices change

// ---- tables ----

function value(cell) {
  const text = cell.textContent.trim();
  const number = parseFloat(text.replace(/,/g, ""));
  return cell.classList.contains("num") ? (Number.isNaN(number) ? -Infinity : number) : text.toLowerCase();
}

function sortable(table) {
  const heads = all(table, "thead th");
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
      const body = one(table, "tbody");
      const rows = all(body, "tr").map((row) => [value(row.cells[column]), row]);
      rows.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// Shows the items that hold what is looked for, and says how many.
function filtered(section, items, keeps) {
  const find = one(section, "[data-find]"), count = one(section, "[data-count]");
  const texts = items.map((item) => item.textContent.toLowerCase());
  const apply = () => {
    const wanted = find.value.trim().toLowerCase();
    let shown = 0;
    items.forEach((item, number) => {
      item.hidden = !(texts[number].includes(wanted) && keeps(item));
      shown += item.hidden ? 0 : 1;
    });
    count.textContent = shown === items.length ? shown + " shown" : shown + " of " + items.length;
  };
  find.addEventListener("input", apply);
  apply();
  return apply;
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
  const axis = { gridcolor: color("grid"), zerolinecolor: color("grid"), linecolor: color("line"), automargin: true, exponentformat: "power" };
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

function plot(element, traces, shape) {
  return Plotly.react(element, traces, shape, { responsive: true, displaylogo: false, displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
}

const upright = (x, text) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { dash: "dash", width: 1, color: color("soft") }, label: { text, font: { size: 10 } } });

function curve(element, heading, named, more = {}) {
  const by = Number(document.getElementById("axis").value);
  const traces = named.map(([name, points, number, dash]) => ({
    type: "scatter", mode: points.length < 60 ? "lines+markers" : "lines", name: label(name), x: points.map((p) => p[by]), y: points.map((p) => p[2]),
    line: { color: colors(number), width: 1.8, dash }, marker: { size: 4 }, hovertemplate: "%{x}: %{y:.5~g}",
  }));
  return plot(element, traces, layout(by ? "epoch" : "step", "", { title: heading, ...more }));
}

function learning() {
  const points = content.curves.points, best = content.curves.best_step;
  const pick = (names) => names.filter((name) => points[name]).map((name, number) => [title(name), points[name], number]);
  const marked = () => {
    if (best === null) return {};
    const found = Object.values(points).flat().find((p) => p[0] === best);
    return { shapes: found ? [upright(found[Number(document.getElementById("axis").value)])] : [] };
  };
  const known = ["train_loss", "valid_loss", "learning_rate", "tokens_per_second", "data_share", "valid_perplexity"];
  const scores = Object.keys(points).filter((name) => name.startsWith("valid_") && !known.includes(name));
  const add = (id, names, heading, more = () => ({})) => {
    if (names.some((name) => points[name])) charts[id] = (element) => curve(element, heading, pick(names), more());
  };
  add("loss", ["train_loss", "valid_loss"], "Loss", marked);
  add("scores", scores, "Validation", marked);
  add("rate", ["learning_rate"], "Learning rate");
  add("speed", ["tokens_per_second"], "Tokens a second", () => ({ yaxis: { rangemode: "tozero" }, showlegend: false }));
  add("waiting", ["data_share"], "Waiting for data", () => ({ yaxis: { rangemode: "tozero", tickformat: ".1%" }, showlegend: false }));
  document.getElementById("axis")?.addEventListener("change", () => redraw(["loss", "scores", "rate", "speed", "waiting"]));
}

function confusion(split, box) {
  const order = one(box, "[data-order]"), shade = one(box, "[data-shade]"), names = split.labels, size = names.length;
  const support = Array(size).fill(0), wrong = Array(size).fill(0), id = "confusion-" + split.id;
  for (const [i, j, rows] of split.confusion) { support[i] += rows; if (i !== j) { wrong[i] += rows; wrong[j] += rows; } }
  const f1 = names.map((name) => split.per_class[name].f1);
  const by = { given: () => 0, rows: (a, b) => support[b] - support[a], wrong: (a, b) => wrong[b] - wrong[a], f1: (a, b) => f1[a] - f1[b],
    name: (a, b) => names[a].localeCompare(names[b]) };
  let places = [];
  charts[id] = (element) => {
    places = names.map((_, number) => number).sort(by[order.value]);
    const at = []; places.forEach((number, place) => { at[number] = place; });
    const z = places.map(() => Array(size).fill(null)), text = places.map(() => Array(size).fill(""));
    for (const [i, j, rows] of split.confusion) {
      if (i === j && shade.value === "mistakes") continue;
      z[at[i]][at[j]] = shade.value === "share" ? rows / support[i] : rows;
      text[at[i]][at[j]] = "true " + label(names[i]) + "<br>predicted " + label(names[j]) + "<br>" + rows.toLocaleString("en") + " rows, " + percent(rows / support[i]) + " of the true class";
    }
    const small = size <= (element.clientWidth < 600 ? 14 : 45), ticks = places.map((number) => plain(short(names[number], 22)));
    const numbers = places.map((_, place) => place);
    const axis = { tickvals: small ? numbers : [], ticktext: small ? ticks : [], showgrid: false, zeroline: false, constrain: "domain" };
    const trace = { type: "heatmap", z, hovertext: text, hoverinfo: "text", xgap: size > 60 ? 0 : 1, ygap: size > 60 ? 0 : 1, zmin: 0, hoverongaps: false,
      colorscale: [[0, color("panel")], [0.02, color("warm")], [1, color("heat")]], colorbar: { thickness: 10, outlinewidth: 0, tickformat: shade.value === "share" ? ".0%" : "" } };
    if (size <= 14) {
      const rows = places.map(() => Array(size).fill(""));
      for (const [i, j, number] of split.confusion) if (i !== j || shade.value !== "mistakes") rows[at[i]][at[j]] = number.toLocaleString("en");
      trace.text = rows; trace.texttemplate = "%{text}"; trace.textfont = { size: 11 };
    }
    element.style.height = Math.max(420, Math.min(860, element.clientWidth, 260 + size * 14)) + "px";
    plot(element, [trace], layout("predicted", "true", { showlegend: false,
      xaxis: { ...axis, tickangle: -60 }, yaxis: { ...axis, autorange: "reversed", title: { text: small ? "" : "true", standoff: 6 } } }));
    if (!element.listens) {
      element.listens = true;
      element.on("plotly_click", (event) => {
        const { x, y } = event.points[0];
        box.show(names[places[y]], places[x] === places[y] ? "" : names[places[x]]);
      });
    }
  };
  for (const select of [order, shade]) select.addEventListener("change", () => redraw([id]));
}

function probabilities(split, box) {
  const several = content.task === "multilabel", sure = several ? "probability" : "confidence", right = several ? "has it" : "right";
  charts["reliability-" + split.id] = (element) => {
    const total = split.reliability.reduce((sum, b) => sum + b[2], 0);
    const line = (name, bins, number, dash) => ({ type: "scatter", mode: "lines+markers", name, x: bins.map((b) => b[0]), y: bins.map((b) => b[1]),
      text: bins.map((b) => sure + " " + percent(b[0]) + "<br>" + right + " " + percent(b[1]) + "<br>" + b[2].toLocaleString("en") + (several ? " labels of rows" : " rows")), hoverinfo: "text",
      line: { color: colors(number), dash }, marker: { size: bins.map((b) => 5 + 12 * Math.sqrt(b[2] / total)) } });
    const ideal = { type: "scatter", mode: "lines", name: "ideal", x: [0, 1], y: [0, 1], line: { color: color("soft"), dash: "dot", width: 1 }, hoverinfo: "skip" };
    const traces = [ideal, line("as bundled", split.reliability, 0)];
    if (split.uncalibrated) traces.push(line("not calibrated", split.uncalibrated, 1, "dash"));
    plot(element, traces, layout(sure, several ? "share that has it" : "accuracy", { title: "Reliability", xaxis: { range: [0, 1.02] }, yaxis: { range: [0, 1.02] } }));
  };
  charts["confidence-" + split.id] = (element) => {
    const bar = (name, pick, number) => ({ type: "bar", name, x: split.reliability.map((b) => b[0]), y: split.reliability.map(pick), marker: { color: colors(number) }, width: 0.05, hovertemplate: "%{y:.0f} rows" });
    plot(element, [bar(several ? "has it" : "right", (b) => Math.round(b[1] * b[2]), 2), bar(several ? "has it not" : "wrong", (b) => Math.round((1 - b[1]) * b[2]), 1)],
      layout(sure, several ? "labels of rows" : "rows", { title: several ? "Probability" : "Confidence", barmode: several ? "group" : "stack", yaxis: several ? { type: "log" } : {}, xaxis: { range: [0, 1.03] } }));
  };
  const select = one(box, "[data-class]"), few = split.curves.length <= 11;
  const names = split.curves.map((c) => (c.class < 0 ? "all classes together" : split.labels[c.class]));
  const every = document.createElement("option");
  every.value = "-1"; every.textContent = few ? "all classes" : "all together and the worst five";
  select.append(every);
  names.forEach((name, number) => { const option = document.createElement("option"); option.value = number; option.textContent = short(name, 60) + ", AUROC " + figure(split.curves[number].auc); select.append(option); });
  const chosen = () => {
    const picked = Number(select.value), numbers = split.curves.map((_, number) => number);
    if (picked >= 0) return [picked];
    return few ? numbers : [0, ...numbers.slice(1).sort((a, b) => split.curves[a].auc - split.curves[b].auc).slice(0, 5)];
  };
  const both = (id, x, y, area, heading, xname, yname) => {
    charts[id + split.id] = (element) => plot(element, chosen().map((number, place) => {
      const found = split.curves[number];
      return { type: "scatter", mode: "lines", name: label(short(names[number], 28)) + " " + found[area].toFixed(3), x: found[x], y: found[y], line: { color: colors(place), width: number ? 1.4 : 2.6 },
        hovertemplate: xname + " %{x:.3f}<br>" + yname + " %{y:.3f}<extra>" + label(names[number]) + "</extra>" };
    }), layout(xname, yname, { title: heading, xaxis: { range: [-0.02, 1.02] }, yaxis: { range: [-0.02, 1.03] } }));
  };
  both("roc-", "fpr", "tpr", "auc", "ROC, one class against the rest", "wrongly taken", "found");
  both("recall-", "recall", "precision", "ap", "Precision by recall", "recall", "precision");
  select.addEventListener("change", () => redraw(["roc-" + split.id, "recall-" + split.id]));
}

function mistakes(split, box) {
  const list = one(box, ".mistakes"), section = list.closest("section"), items = all(list, "li");
  const truth = one(section, "[data-true]"), guess = one(section, "[data-predicted]"), find = one(section, "[data-find]");
  options(truth, [...new Set(items.map((item) => item.dataset.true))].sort());
  options(guess, [...new Set(items.map((item) => item.dataset.predicted))].sort());
  const apply = filtered(section, items, (item) => (!truth.value || item.dataset.true === truth.value) && (!guess.value || item.dataset.predicted === guess.value));
  for (const select of [truth, guess]) select.addEventListener("change", apply);
  const set = (select, text) => { select.value = [...select.options].some((option) => option.value === text) ? text : ""; };
  one(section, "[data-clear]").addEventListener("click", () => { find.value = truth.value = guess.value = ""; apply(); });
  box.show = (label_, predicted) => {
    find.value = ""; set(truth, label_); set(guess, predicted); apply();
    section.scrollIntoView({ behavior: "smooth" });
  };
}

function lengths(data) {
  const names = data.edges.map((edge, number) => (number + 1 < data.edges.length ? (data.edges[number + 1] - edge > 1 ? edge + "–" + (data.edges[number + 1] - 1) : String(edge)) : edge + "+"));
  const used = names.map((_, number) => Object.values(data.lengths).some((rows) => rows[number]));
  const first = used.indexOf(true), last = used.lastIndexOf(true) + 1;
  const cut = data.edges.slice(first, last).filter((edge) => edge <= data.max_length).length - 0.5;
  charts.lengths = (element) => plot(element, Object.entries(data.lengths).map(([split, rows], number) => {
    const sum = rows.reduce((a, b) => a + b, 0) || 1;
    return { type: "bar", name: split, x: names.slice(first, last).map((_, place) => place), y: rows.slice(first, last).map((count) => count / sum), marker: { color: colors(number) },
      text: rows.slice(first, last).map((count, place) => split + ": " + count.toLocaleString("en") + " rows of " + names[first + place] + " tokens"), textposition: "none", hoverinfo: "text" };
  }), layout("tokens", "share of the rows", { title: "Lengths", yaxis: { tickformat: ".0%" }, shapes: cut < last - first ? [upright(cut)] : [],
    xaxis: { tickvals: names.slice(first, last).map((_, place) => place), ticktext: names.slice(first, last), tickangle: -45 } }));
}

function run() {
  if (content.curves.points.train_loss || content.curves.points.valid_loss) learning();
  for (const split of content.splits) {
    const box = one(document, '[data-split="' + split.id + '"]');
    if (content.task === "seq2seq") {
      const wrong = one(box, "[data-wrong]"), apply = filtered(box, all(box, "tbody tr"), (row) => !wrong.checked || row.dataset.right === "0");
      wrong.addEventListener("change", apply);
      continue;
    }
    const table = one(box, "table").closest("section");
    filtered(table, all(table, "tbody tr"), () => true);
    mistakes(split, box);
    if (split.confusion) confusion(split, box);
    probabilities(split, box);
  }
  for (const button of all(document, "[data-tab]")) button.addEventListener("click", () => {
    all(document, "[data-tab]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    all(document, "[data-split]").forEach((box) => { box.hidden = box.dataset.split !== button.dataset.tab; });
  });
  if (content.data) lengths(content.data);
  if (content.seconds.length) charts.seconds = (element) => plot(element, content.seconds.map(([name, seconds], number) => ({ type: "bar", orientation: "h", name: plain(name), x: [seconds], y: [""], marker: { color: colors(number) },
    hovertemplate: plain(name) + ": %{x:.1f} s<extra></extra>" })), layout("seconds", "", { title: "Where the time of the last session went", barmode: "stack", height: 240 }));
}

// ---- searches ----

function search() {
  const done = content.trials.filter((trial) => trial.best !== null), better = (a, b) => (content.lower ? a < b : a > b);
  let picked = null;
  const scale = (trial) => { const values = done.map((t) => t.best), low = Math.min(...values), high = Math.max(...values);
    const share = high > low ? (trial.best - low) / (high - low) : 1; return content.lower ? 1 - share : share; };
  const pick = (number) => {
    picked = picked === number ? null : number;
    all(document, "[data-trial]").forEach((row) => row.classList.toggle("picked", Number(row.dataset.trial) === picked));
    redraw(["course", "parallel", "slice"]);
  };
  for (const row of all(document, "[data-trial]")) {
    row.addEventListener("click", () => pick(Number(row.dataset.trial)));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(Number(row.dataset.trial)); });
  }
  const name = (trial) => "trial " + String(trial.number).padStart(4, "0");
  const hover = (trial) => name(trial) + ", " + trial.state + "<br>" + content.keys.map((key, i) => plain(key) + " " + label(figure(trial.settings[i]))).join("<br>");
  charts.course = (element) => {
    const traces = content.trials.filter((trial) => trial.history.length).map((trial) => {
      const stopped = trial.state === "stopped", mine = trial.number === picked;
      return { type: "scatter", mode: "lines+markers", name: name(trial), showlegend: false, x: trial.history.map((h) => h[0]), y: trial.history.map((h) => h[1]),
        line: { width: mine ? 4 : 1.5, color: mine ? color("c1") : stopped ? color("c7") : color("c0") }, opacity: picked === null || mine ? 0.9 : 0.25,
        marker: { size: trial.history.map((_, i) => (stopped && i + 1 === trial.history.length ? 9 : 4)), symbol: trial.history.map((_, i) => (stopped && i + 1 === trial.history.length ? "x" : "circle")) },
        text: trial.history.map((h) => hover(trial) + "<br>epoch " + h[0].toFixed(2) + ": " + figure(h[1])), hoverinfo: "text", customdata: trial.history.map(() => trial.number) };
    });
    plot(element, traces, layout("epoch", content.metric));
  };
  charts.progress = (element) => {
    let best = null; const order = [...done].sort((a, b) => a.number - b.number);
    const line = order.map((trial) => { if (best === null || better(trial.best, best)) best = trial.best; return best; });
    plot(element, [{ type: "scatter", mode: "markers", name: "trial", x: order.map((t) => t.number), y: order.map((t) => t.best), marker: { color: color("c7") }, text: order.map(hover), hoverinfo: "text" },
      { type: "scatter", mode: "lines", name: "best so far", line: { shape: "hv", color: color("c0") }, x: order.map((t) => t.number), y: line, hovertemplate: "%{y:.4f}" }], layout("trial", content.metric));
  };
  charts.parallel = (element) => parallel(element, done, scale, picked, pick, hover, name);
  const key = document.getElementById("key");
  charts.slice = (element) => {
    const place = Number(key.value), values = done.map((t) => t.settings[place]), numeric = values.every((v) => typeof v === "number");
    plot(element, [{ type: "scatter", mode: "markers", x: numeric ? values : values.map((v) => label(v)), y: done.map((t) => t.best), text: done.map(hover), hoverinfo: "text",
      marker: { size: done.map((t) => (t.number === picked ? 14 : 8)), color: done.map((t) => (t.number === picked ? color("c1") : t.state === "stopped" ? color("c7") : color("c0"))) } }],
      layout(plain(content.keys[place]), content.metric, { showlegend: false, xaxis: { type: !numeric ? "category" : content.log_keys.includes(content.keys[place]) ? "log" : "linear" } }));
  };
  key?.addEventListener("change", () => redraw(["slice"]));
  if (content.importance.length) charts.importance = (element) => {
    const rows = [...content.importance].reverse();
    plot(element, [{ type: "bar", orientation: "h", x: rows.map((r) => r[1]), y: rows.map((r) => plain(r[0])), marker: { color: color("c0") }, hovertemplate: "%{x:.0%}<extra></extra>" }],
      layout("", "", { showlegend: false, xaxis: { tickformat: ".0%", rangemode: "tozero" }, height: 120 + 34 * rows.length }));
  };
}

// Parallel coordinates, drawn here: plotly's need WebGL and make functions of text, which this page does not allow.
function parallel(element, trials, scale, picked, pick, hover, name) {
  const svg = (tag, set, text) => { const made = document.createElementNS("http://www.w3.org/2000/svg", tag); for (const [key, v] of Object.entries(set)) made.setAttribute(key, v); if (text !== undefined) made.textContent = text; return made; };
  const axes = [...content.keys.map((key, i) => ({ title: key, get: (t) => t.settings[i], log: content.log_keys.includes(key) })), { title: content.metric, get: (t) => t.best, log: false }];
  const gap = 130, width = Math.max(element.clientWidth, gap * axes.length), height = 420, top = 60, bottom = 390, left = 60, right = width - 70;
  axes.forEach((axis, number) => {
    axis.x = axes.length > 1 ? left + (right - left) * number / (axes.length - 1) : left;
    const values = trials.map(axis.get);
    axis.numeric = values.length > 0 && values.every((v) => typeof v === "number");
    if (axis.numeric) {
      const f = axis.log ? Math.log : (v) => v, low = Math.min(...values), high = Math.max(...values);
      axis.y = (v) => (high > low ? bottom - (bottom - top) * (f(v) - f(low)) / (f(high) - f(low)) : (top + bottom) / 2);
      axis.ticks = high > low ? [0, 0.25, 0.5, 0.75, 1].map((p) => (axis.log ? Math.exp(f(low) + p * (f(high) - f(low))) : low + p * (high - low))) : [low];
    } else {
      axis.ticks = [...new Set(values.map(String))];
      axis.y = (v) => { const at = axis.ticks.indexOf(String(v)); return axis.ticks.length > 1 ? bottom - (bottom - top) * at / (axis.ticks.length - 1) : (top + bottom) / 2; };
    }
  });
  const drawing = svg("svg", { width, height, viewBox: "0 0 " + width + " " + height });
  const order = [...trials].sort((a, b) => (a.number === picked) - (b.number === picked) || scale(a) - scale(b));
  for (const trial of order) {
    const mine = trial.number === picked, good = scale(trial);
    const path = svg("polyline", { points: axes.map((axis) => axis.x + "," + axis.y(axis.get(trial))).join(" "), fill: "none", stroke: mine ? color("c1") : color("c0"), "stroke-width": mine ? 4 : 1 + 1.5 * good,
      "stroke-opacity": mine ? 1 : picked === null ? 0.12 + 0.78 * good ** 2 : 0.12, style: "cursor: pointer", "data-line": trial.number });
    path.append(svg("title", {}, name(trial) + ": " + figure(trial.best)));
    path.addEventListener("click", () => pick(trial.number));
    drawing.append(path);
  }
  axes.forEach((axis, number) => {
    drawing.append(svg("line", { x1: axis.x, x2: axis.x, y1: top, y2: bottom, stroke: color("soft") }));
    const parts = axis.title.split(".");
    parts.forEach((part, i) => drawing.append(svg("text", { x: axis.x, y: top - 14 - 14 * (parts.length - 1 - i), "text-anchor": "middle", "font-size": 12, "font-weight": 600 }, short(part, 20))));
    for (const tick of axis.ticks) drawing.append(svg("text", { x: axis.x + 5, y: axis.y(tick) + 4, "font-size": 11, stroke: color("back"), "stroke-width": 3, "paint-order": "stroke" }, axis.numeric ? (Number.isInteger(tick) ? String(tick) : tick.toPrecision(3)) : short(tick, 14)));
  });
  element.style.overflowX = "auto";
  element.style.minHeight = height + "px";
  element.replaceChildren(drawing);
}

function comparison() {
  const names = [...new Set(content.runs.flatMap((one_) => Object.keys(one_.curves.points)))];
  const first = ["valid_loss", "valid_accuracy", "valid_f1_macro", "train_loss", "learning_rate", "tokens_per_second", "data_share"];
  const order = [...first.filter((name) => names.includes(name)), ...names.filter((name) => !first.includes(name))];
  for (const name of order) {
    const element = document.createElement("div");
    element.className = "chart";
    element.dataset.chart = name;
    document.getElementById("overlaid").append(element);
    charts[name] = (where) => curve(where, title(name), content.runs.map((r, number) => [r.name, r.curves.points[name] || [], number]).filter((trace) => trace[1].length));
  }
  document.getElementById("axis").addEventListener("change", () => redraw(order));
}

// ---- when to draw ----

const shown = new Set();
function redraw(ids) {
  for (const id of ids) if (shown.has(id)) charts[id](one(document, '[data-chart="' + CSS.escape(id) + '"]'));
}
function draw(element) {
  const id = element.dataset.chart;
  if (shown.has(id) || !charts[id]) return;
  shown.add(id);
  charts[id](element);
}

async function unpack() {
  const packed = document.getElementById("library");
  const bytes = Uint8Array.from(atob(packed.textContent), (character) => character.charCodeAt(0));
  packed.remove();
  const code = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const script = document.createElement("script");
  script.textContent = code;
  document.head.append(script);
}

async function start() {
  all(document, "table.sortable").forEach(sortable);
  ({ run, search, comparison })[content.kind]();
  for (const element of all(document, "[data-chart]")) element.hidden = !charts[element.dataset.chart];
  await unpack();
  if (!window.Plotly) throw new Error("plotly.js did not start");
  const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => { if (entry.isIntersecting) draw(entry.target); }), { rootMargin: "400px" });
  for (const element of all(document, "[data-chart]")) watcher.observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw([...shown]));
  window.addEventListener("beforeprint", () => all(document, "[data-chart]").forEach(draw));
  document.documentElement.dataset.ready = "1";
}
start().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.hidden = false;
  trouble.textContent = "The charts cannot be drawn (" + error.message + "). They need a browser of 2023 or later; all tables are here.";
});
