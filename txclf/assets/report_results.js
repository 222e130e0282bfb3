// ---- results of drift, curve and audit ----

const MAX_BARS = 30;

function compared(element, names, shares, x, more = {}) {
  const sides = [["known", "c7"], ["new", "c0"]];
  return plot(element, sides.map(([side, shade]) => ({ type: "bar", name: side + " rows", x: names, y: shares[side], marker: { color: color(shade) }, hovertemplate: "%{x}: %{y:.1%}" })),
    layout(x, "share of the rows", { yaxis: { tickformat: ".0%", rangemode: "tozero" }, barmode: "group", ...more }));
}

function drift() {
  const shares = content.result.shares.slice(0, MAX_BARS), bins = content.result.lengths.bins;
  charts.shares = (element) => compared(element, shares.map(([name]) => label(name)),
    { known: shares.map(([, share]) => share.known), new: shares.map(([, share]) => share.new) }, "", { xaxis: { type: "category" } });
  charts.lengths = (element) => compared(element, bins.starts, bins, "words");
}

function learning_curve() {
  const { points, forecast, score } = content.result, last = points[points.length - 1];
  const ahead = [{ rows: last.rows, [score]: last[score], low: last[score], high: last[score] }, ...forecast];
  const x = ahead.map((p) => p.rows), band = { type: "scatter", mode: "lines", x, line: { width: 0 }, hoverinfo: "skip", showlegend: false };
  charts.rows = (element) => plot(element, [
    { ...band, y: ahead.map((p) => p.low) },
    { ...band, y: ahead.map((p) => p.high), fill: "tonexty", fillcolor: color("warm"), name: "95% range", showlegend: true },
    { type: "scatter", mode: "lines+markers", name: "forecast", x, y: ahead.map((p) => p[score]), line: { color: color("c0"), dash: "dash" }, hovertemplate: "%{x:,} rows: %{y:.4f}" },
    { type: "scatter", mode: "lines+markers", name: "measured", x: points.map((p) => p.rows), y: points.map((p) => p[score]), line: { color: color("c0") }, hovertemplate: "%{x:,} rows: %{y:.4f}" },
  ], layout("training rows", title(score), { xaxis: { type: "log", tickvals: [...points, ...forecast].map((p) => p.rows), tickformat: "," } }));
}

function audit() {
  charts.map = (element) => plot(element, [[false, "label not doubted", "c0"], [true, "label doubted", "c1"]].map(([doubted, name, shade]) => {
    const rows = content.result.map.filter((row) => row[2] === doubted);
    return { type: "scatter", mode: "markers", name, x: rows.map((row) => row[0]), y: rows.map((row) => row[1]), text: rows.map((row) => label(row[3]) + "<br>" + label(row[4])),
      marker: { color: color(shade), size: 5, opacity: 0.6 }, hovertemplate: "%{text}<br>confidence %{y:.2f}, variability %{x:.2f}<extra></extra>" };
  }), layout("variability", "confidence", { yaxis: { range: [-0.03, 1.03] }, xaxis: { rangemode: "tozero" } }));
}
