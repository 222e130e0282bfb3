// ---- runs ----

function learning() {
  const points = content.curves.points, best = content.curves.best_step;
  const pick = (names) => names.filter((name) => points[name]).map((name, number) => [title(name), points[name], number]);
  const marked = () => {
    if (best === null) return {};
    const found = Object.values(points).flat().find((p) => p[0] === best);
    return { shapes: found ? [verticalLine(found[Number(document.getElementById("axis").value)])] : [] };
  };
  const otherMetrics = ["train_loss", "valid_loss", "valid_calibrated_loss", "learning_rate", "tokens_per_second", "data_share", "valid_perplexity"];
  const scores = Object.keys(points).filter((name) => name.startsWith("valid_") && !otherMetrics.includes(name));
  const add = (id, names, heading, more = () => ({})) => {
    if (names.some((name) => points[name])) charts[id] = (element) => curve(element, heading, pick(names), more());
  };
  add("loss", ["train_loss", "valid_loss", "valid_calibrated_loss"], "Loss", marked);
  add("scores", scores, "Validation", marked);
  add("rate", ["learning_rate"], "Learning rate", () => ({ yaxis: { tickformat: "~g" }, showlegend: false }));
  add("speed", ["tokens_per_second"], "Tokens per second", () => ({ yaxis: { rangemode: "tozero" }, showlegend: false }));
  add("waiting", ["data_share"], "Waiting for data", () => ({ yaxis: { rangemode: "tozero", tickformat: ".1%" }, showlegend: false }));
  document.getElementById("axis")?.addEventListener("change", () => redraw(["loss", "scores", "rate", "speed", "waiting"]));
}

const MAX_CLASSES = 1000;  // of the heat map; the order selects which

function confusion(split, box) {
  const order = query(box, "[data-order]"), shade = query(box, "[data-shade]"), names = split.labels, size = names.length;
  const support = Array(size).fill(0), wrong = Array(size).fill(0), id = "confusion-" + split.id;
  for (const [i, j, rows] of split.confusion) { support[i] += rows; if (i !== j) { wrong[i] += rows; wrong[j] += rows; } }
  const f1 = names.map((name) => split.per_class[name].f1);
  const by = { given: () => 0, rows: (a, b) => support[b] - support[a], wrong: (a, b) => wrong[b] - wrong[a], f1: (a, b) => f1[a] - f1[b],
    name: (a, b) => names[a].localeCompare(names[b]) };
  let sorted = [];
  charts[id] = (element) => {
    sorted = names.map((_, number) => number).sort(by[order.value]).slice(0, MAX_CLASSES);
    const positions = []; sorted.forEach((number, position) => { positions[number] = position; });
    const z = sorted.map(() => Array(sorted.length).fill(null)), text = sorted.map(() => Array(sorted.length).fill(""));
    for (const [i, j, rows] of split.confusion) {
      if (!(i in positions && j in positions)) continue;
      if (i === j && shade.value === "mistakes") continue;
      z[positions[i]][positions[j]] = shade.value === "share" ? rows / support[i] : rows;
      text[positions[i]][positions[j]] = "true " + label(names[i]) + "<br>predicted " + label(names[j]) + "<br>" + rows.toLocaleString("en") + " rows, " + percent(rows / support[i]) + " of the true class";
    }
    const small = size <= (element.clientWidth < 600 ? 14 : 45), ticks = sorted.map((number) => plain(short(names[number], 22)));
    const numbers = sorted.map((_, position) => position);
    const axis = { tickvals: small ? numbers : [], ticktext: small ? ticks : [], showgrid: false, zeroline: false, constrain: "domain" };
    const trace = { type: "heatmap", z, hovertext: text, hoverinfo: "text", xgap: size > 60 ? 0 : 1, ygap: size > 60 ? 0 : 1, zmin: 0, hoverongaps: false,
      colorscale: [[0, color("panel")], [0.02, color("warm")], [1, color("heat")]], colorbar: { thickness: 10, outlinewidth: 0, tickformat: shade.value === "share" ? ".0%" : "" } };
    if (size <= 14) {
      const rows = sorted.map(() => Array(size).fill(""));
      for (const [i, j, number] of split.confusion) if (i !== j || shade.value !== "mistakes") rows[positions[i]][positions[j]] = number.toLocaleString("en");
      trace.text = rows; trace.texttemplate = "%{text}"; trace.textfont = { size: 11, color: color("text") };
    }
    element.style.height = Math.max(420, Math.min(860, element.clientWidth, 260 + size * 14)) + "px";
    plot(element, [trace], layout("predicted label", "true label", { showlegend: false,
      xaxis: { ...axis, tickangle: -60 }, yaxis: { ...axis, autorange: "reversed", title: { text: "true label", standoff: 6 } } }));
    if (!element.listens) {
      element.listens = true;
      element.on("plotly_click", (event) => {
        const { x, y } = event.points[0];
        box.show(names[sorted[y]], names[sorted[x]]);
      });
    }
  };
  for (const select of [order, shade]) select.addEventListener("change", () => redraw([id]));
}

function probabilities(split, box) {
  const multilabel = content.is_multilabel, score = multilabel ? "probability" : "confidence", unit = multilabel ? " row-label pairs" : " rows";
  const right = multilabel ? "positive" : "correct", wrong = multilabel ? "negative" : "wrong", rate = multilabel ? "share of positives" : "accuracy";
  charts["reliability-" + split.id] = (element) => {
    const total = split.reliability.reduce((sum, b) => sum + b[2], 0);
    const line = (name, bins, number, dash) => ({ type: "scatter", mode: "lines+markers", name, x: bins.map((b) => b[0]), y: bins.map((b) => b[1]),
      text: bins.map((b) => score + " " + percent(b[0]) + "<br>" + rate + " " + percent(b[1]) + "<br>" + b[2].toLocaleString("en") + unit), hoverinfo: "text",
      line: { color: colors(number), dash }, marker: { size: bins.map((b) => 5 + 12 * Math.sqrt(b[2] / total)) } });
    const ideal = { type: "scatter", mode: "lines", name: "ideal", x: [0, 1], y: [0, 1], line: { color: color("soft"), dash: "dot", width: 1 }, hoverinfo: "skip" };
    const traces = [ideal, line("this model", split.reliability, 0)];
    if (split.uncalibrated) traces.push(line("before calibration", split.uncalibrated, 1, "dash"));
    plot(element, traces, layout(score, rate, { title: "Reliability", xaxis: { range: [0, 1.02] }, yaxis: { range: [0, 1.02] } }));
  };
  charts["confidence-" + split.id] = (element) => {
    const bar = (name, pick, number) => ({ type: "bar", name, x: split.reliability.map((b) => b[0]), y: split.reliability.map(pick), marker: { color: colors(number) }, width: 0.05, hovertemplate: "%{y:.0f}" + unit });
    plot(element, [bar(right, (b) => Math.round(b[1] * b[2]), 2), bar(wrong, (b) => Math.round((1 - b[1]) * b[2]), 1)],
      layout(score, unit.trim(), { title: multilabel ? "Probability" : "Confidence", barmode: multilabel ? "group" : "stack", yaxis: multilabel ? { type: "log" } : {}, xaxis: { range: [0, 1.03] } }));
  };
  if (split.coverage.length) charts["coverage-" + split.id] = (element) => plot(element, [{ type: "scatter", mode: "lines", x: split.coverage.map((p) => p[0]), y: split.coverage.map((p) => p[1]), line: { color: colors(0) }, hoverinfo: "text",
    text: split.coverage.map((p) => percent(p[0]) + " of the rows, confidence at least " + p[2].toFixed(3) + "<br>accuracy " + percent(p[1])) }],
    layout("share of rows answered, most confident first", "accuracy", { title: "Accuracy by coverage", showlegend: false, xaxis: { range: [0, 1.02], tickformat: ".0%" }, yaxis: { tickformat: ".1~%" } }));
  if (!split.curves.length) return;
  const select = query(box, "[data-class]"), few = split.curves.length <= 11;
  const names = split.curves.map((c) => (c.class_id < 0 ? "micro-average" : split.labels[c.class_id]));
  const every = document.createElement("option");
  every.value = "-1"; every.textContent = few ? "all" : (split.curves[0].class_id < 0 ? "micro-average and " : "") + "the five worst";
  select.append(every);
  names.forEach((name, number) => { const option = document.createElement("option"); option.value = number; option.textContent = short(name, 60) + ", AUROC " + figure(split.curves[number].auc); select.append(option); });
  const chosen = () => {
    const picked = Number(select.value), numbers = split.curves.map((_, number) => number);
    if (picked >= 0) return [picked];
    const isMicro = (number) => split.curves[number].class_id < 0, classes = numbers.filter((number) => !isMicro(number));
    return few ? numbers : [...numbers.filter(isMicro), ...classes.sort((a, b) => split.curves[a].auc - split.curves[b].auc).slice(0, 5)];
  };
  const both = (id, x, y, area, heading, xname, yname) => {
    charts[id + split.id] = (element) => plot(element, chosen().map((number, position) => {
      const curve = split.curves[number];
      return { type: "scatter", mode: "lines", name: label(short(names[number], 28)) + " " + curve[area].toFixed(3), x: curve[x], y: curve[y], line: { color: colors(position), width: curve.class_id < 0 ? 2.6 : 1.4 },
        hovertemplate: xname + " %{x:.3f}<br>" + yname + " %{y:.3f}<extra>" + label(names[number]) + "</extra>" };
    }), layout(xname, yname, { title: heading, xaxis: { range: [-0.02, 1.02] }, yaxis: { range: [-0.02, 1.03] } }));
  };
  both("roc-", "fpr", "tpr", "auc", "ROC, one class against the rest", "false positive rate", "true positive rate");
  both("recall-", "recall", "precision", "ap", "Precision-recall", "recall", "precision");
  charts["threshold-" + split.id] = (element) => {
    const curve = split.curves[Math.max(0, Number(select.value))];
    const line = (name, values, number) => ({ type: "scatter", mode: "lines", name, x: curve.threshold, y: values, line: { color: colors(number) }, hovertemplate: "threshold %{x:.3f}<br>" + name + " %{y:.3f}<extra></extra>" });
    plot(element, [line("precision", curve.precision, 0), line("recall", curve.recall, 1)],
      layout("threshold of the probability", "", { title: "Precision and recall by threshold, " + label(short(curve.class_id < 0 ? "all classes" : split.labels[curve.class_id], 28)), xaxis: { range: [0, 1.02] }, yaxis: { range: [0, 1.03] } }));
  };
  select.addEventListener("change", () => redraw(["roc-" + split.id, "recall-" + split.id, "threshold-" + split.id]));
}

function mistakes(split, box) {
  const list = query(box, ".mistakes"), section = list.closest("section"), items = queryAll(list, "li");
  const truth = query(section, "[data-true]"), guess = query(section, "[data-predicted]"), find = query(section, "[data-find]");
  options(truth, [...new Set(items.map((item) => item.dataset.true))].sort());
  options(guess, [...new Set(items.map((item) => item.dataset.predicted))].sort());
  const kind = query(section, "[data-kind]");
  const apply = filtered(section, items, (item) => (!kind.value || item.dataset.kind === kind.value) && (!truth.value || item.dataset.true === truth.value) && (!guess.value || item.dataset.predicted === guess.value));
  for (const select of [truth, guess, kind]) select.addEventListener("change", apply);
  const set = (select, text) => { select.value = [...select.options].some((option) => option.value === text) ? text : ""; };
  query(section, "[data-clear]").addEventListener("click", () => { find.value = truth.value = guess.value = ""; kind.value = "wrong"; apply(); });
  box.show = (label_, predicted) => {
    find.value = ""; kind.value = predicted === label_ ? "right" : "wrong"; set(truth, label_); set(guess, predicted === label_ ? "" : predicted); apply();
    section.scrollIntoView({ behavior: "smooth" });
  };
}

function lengths(data) {
  const names = data.edges.map((edge, number) => (number + 1 < data.edges.length ? (data.edges[number + 1] - edge > 1 ? edge + "–" + (data.edges[number + 1] - 1) : String(edge)) : edge + "+"));
  const used = names.map((_, number) => Object.values(data.lengths).some((rows) => rows[number]));
  const first = used.indexOf(true), last = used.lastIndexOf(true) + 1;
  const edges = [...data.edges.slice(first, last), data.edges[last] ?? Math.round(1.4 * data.edges[last - 1])].map((edge) => Math.max(edge, 0.5));
  const truncated = data.splits.some((split) => split.truncated_rows), total = (rows) => rows.reduce((a, b) => a + b, 0) || 1;
  charts.lengths = (element) => plot(element, Object.entries(data.lengths).map(([split, all], number) => {
    const rows = all.slice(first, last), sum = total(all);
    return { type: "scatter", mode: "lines", name: split, x: edges, y: [...rows, rows.at(-1)].map((count) => count / sum), line: { shape: "hv", color: colors(number) },
      text: [...rows, rows.at(-1)].map((count, bin) => split + ": " + count.toLocaleString("en") + " rows of " + names[first + Math.min(bin, rows.length - 1)] + " tokens"), hoverinfo: "text" };
  }), layout("tokens", "share of rows", { title: "Lengths", yaxis: { tickformat: ".0%", rangemode: "tozero" }, shapes: truncated ? [verticalLine(data.max_length + 0.5, "max_length")] : [],
    xaxis: { type: "log", tickvals: edges, ticktext: edges.map((edge) => figure(edge)), tickangle: 0 } }));
}

function run() {
  if (content.curves.points.train_loss || content.curves.points.valid_loss) learning();
  for (const split of content.splits) {
    const box = query(document, '[data-split="' + split.id + '"]');
    if (content.is_seq2seq) {
      const wrong = query(box, "[data-wrong]"), apply = filtered(box, queryAll(box, "tbody tr"), (row) => !wrong.checked || row.dataset.right === "0");
      wrong.addEventListener("change", apply);
      continue;
    }
    const table = query(box, "table").closest("section");
    filtered(table, queryAll(table, "tbody tr"), () => true);
    mistakes(split, box);
    if (split.confusion) confusion(split, box);
    probabilities(split, box);
  }
  for (const button of queryAll(document, "[data-tab]")) button.addEventListener("click", () => {
    queryAll(document, "[data-tab]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    queryAll(document, "[data-split]").forEach((box) => { box.hidden = box.dataset.split !== button.dataset.tab; });
  });
  if (content.data) lengths(content.data);
  if (content.seconds.length) charts.seconds = (element) => plot(element, content.seconds.map(([name, seconds], number) => ({ type: "bar", orientation: "h", name: plain(name), x: [seconds], y: [""], marker: { color: colors(number) },
    hovertemplate: plain(name) + ": %{x:.1f} s<extra></extra>" })), layout("", "", { xaxis: { ticksuffix: " s" }, title: "Time of the last attempt", barmode: "stack", height: 240 }));
}
