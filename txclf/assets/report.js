// ---- drawing and start ----

const shown = new Set();
function redraw(ids) {
  for (const id of ids) if (shown.has(id)) charts[id](query(document, '[data-chart="' + CSS.escape(id) + '"]'));
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
  queryAll(document, "table").filter((table) => query(table, "thead")).forEach(labelled);
  queryAll(document, "table.sortable").forEach(sortable);
  ({ run, search, comparison, drift, learning_curve, audit })[content.kind]();
  for (const element of queryAll(document, "[data-chart]")) element.hidden = !charts[element.dataset.chart];
  await unpack();
  if (!window.Plotly) throw new Error("plotly.js did not start");
  const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => { if (entry.isIntersecting) draw(entry.target); }), { rootMargin: "400px" });
  for (const element of queryAll(document, "[data-chart]")) watcher.observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw([...shown]));
  window.addEventListener("beforeprint", () => queryAll(document, "[data-chart]").forEach(draw));
  document.documentElement.dataset.ready = "1";
}
start().catch((error) => {
  const trouble = document.getElementById("trouble");
  trouble.hidden = false;
  trouble.textContent = "The charts cannot be drawn: " + error.message + ". Use a browser from 2023 or later. The tables are complete without charts.";
});
