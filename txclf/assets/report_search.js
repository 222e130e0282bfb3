// ---- searches ----

function search() {
  const done = content.trials.filter((trial) => trial.best !== null), better = (a, b) => (content.lower ? a < b : a > b);
  let picked = null;
  const scale = (trial) => { const values = done.map((t) => t.best), low = Math.min(...values), high = Math.max(...values);
    const share = high > low ? (trial.best - low) / (high - low) : 1; return content.lower ? 1 - share : share; };
  const pick = (number) => {
    picked = picked === number ? null : number;
    queryAll(document, "[data-trial]").forEach((row) => row.classList.toggle("picked", Number(row.dataset.trial) === picked));
    redraw(["history", "parallel", "slice"]);
  };
  for (const row of queryAll(document, "[data-trial]")) {
    row.addEventListener("click", () => pick(Number(row.dataset.trial)));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(Number(row.dataset.trial)); });
  }
  const name = (trial) => "trial " + String(trial.number).padStart(4, "0");
  const hover = (trial) => name(trial) + ", " + trial.state + "<br>" + content.keys.map((key, i) => plain(key) + " " + label(figure(trial.settings[i]))).join("<br>");
  charts.history = (element) => {
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

// Parallel coordinates as SVG: plotly's version needs WebGL and eval, which the page's Content-Security-Policy forbids.
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
  element.tabIndex = 0;
  element.style.minHeight = height + "px";
  element.replaceChildren(drawing);
}

function comparison() {
  for (const section of queryAll(document, "#classes, #disagreements")) {
    if (!query(section, "[data-find]")) continue;
    const right = query(section, "[data-right]:is(select)"), items = queryAll(section, "tbody tr, .mistakes li");
    const apply = filtered(section, items, (item) => !right || !right.value || item.dataset.right.trim() === (right.value === "none" ? "" : right.value));
    right?.addEventListener("change", apply);
  }
  const names = [...new Set(content.runs.flatMap((run) => Object.keys(run.curves.points)))];
  const preferred = ["valid_calibrated_loss", "valid_loss", "valid_accuracy", "valid_f1_macro", "train_loss", "learning_rate", "tokens_per_second", "data_share"];
  const order = [...preferred.filter((name) => names.includes(name)), ...names.filter((name) => !preferred.includes(name))];
  for (const name of order) {
    const element = document.createElement("div");
    element.className = "chart";
    element.dataset.chart = name;
    document.getElementById("overlaid").append(element);
    charts[name] = (where) => curve(where, title(name), content.runs.map((r, number) => [r.name, r.curves.points[name] || [], number]).filter((trace) => trace[1].length));
  }
  document.getElementById("axis").addEventListener("change", () => redraw(order));
}
