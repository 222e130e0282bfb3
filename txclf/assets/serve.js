"use strict";
// Text of the model and of the user is only ever set by textContent. Requests go only to the host of the page.
(() => {
  const get = id => document.getElementById(id);
  const FIRST_LABELS = 10;  // labels shown before "Show all labels"
  let model = null, token = "", row = null, prediction = null, turn = 0;

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  const percent = p => p >= 0.9995 ? ">99.9%" : p < 0.0005 ? "<0.1%" : (100 * p).toFixed(1) + "%";

  async function call(path, body) {
    const headers = token ? {Authorization: "Bearer " + token} : {};
    if (body) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), cache: "no-store"});
    } catch {
      throw new Error("The service does not answer. Check that it is running.");
    }
    const content = await response.json().catch(() => ({}));
    if (response.ok) return content;
    const failure = new Error(content.error ? content.error.message : "Status " + response.status);
    failure.status = response.status;
    throw failure;
  }

  function showError(failure) {
    get("error").textContent = failure ? failure.message : "";
    if (failure && failure.status === 401) {
      get("access").hidden = false;
      get("token").focus();
    }
  }

  async function start() {
    try {
      model = await call("model");
    } catch (failure) {
      if (failure.status === 401 && !token) failure.message = "";
      showError(failure);
      return;
    } finally {
      document.documentElement.dataset.ready = "";
    }
    showError(null);
    get("access").hidden = true;
    get("ask").hidden = false;
    get("name").textContent = model.name;
    document.title = model.name + " – txclf";
    const labels = model.labels.length;
    get("about").textContent = model.is_seq2seq ? "Generates a text from a text."
      : model.is_multilabel ? "Predicts any number of " + labels + " labels." : "Predicts one of " + labels + " labels.";
    get("fields").replaceChildren(...model.text_columns.flatMap((name, i) => {
      const label = make("label", "field", name), area = make("textarea");
      label.htmlFor = area.id = "field-" + i;
      area.name = name;
      area.dir = "auto";
      return [label, area];
    }));
    get("batch").hidden = false;
    get("lines-hint").textContent = model.text_columns.length > 1
      ? "The columns " + model.text_columns.join(", ") + " of a row are separated by tabs, as copied from a spreadsheet." : "Blank lines are skipped.";
    const examples = model.examples.map(example => {
      const texts = model.text_columns.map(name => example[name] ?? ""), button = make("button", "plain", texts.join(" · "));
      button.type = "button";
      button.onclick = () => { texts.forEach((text, i) => { get("field-" + i).value = text; }); predict(); };
      return button;
    });
    get("examples").replaceChildren(...examples);
    get("examples").hidden = !examples.length;
    get("field-0").focus();
  }

  const quoted = text => "'" + text.replace(/'/g, "'\\''") + "'";

  // The command reads the token from the environment, so that a copy of it holds no secret.
  function command() {
    const body = JSON.stringify({rows: [readFields()]});
    return "curl " + quoted(new URL("predict", location.href).href) + " -H 'Content-Type: application/json'"
      + (token ? ' -H "Authorization: Bearer $TXCLF_SERVE_TOKEN"' : "") + " -d " + quoted(body);
  }

  async function copy(text, button) {
    const title = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      get("status").textContent = "copied";
      setTimeout(() => { button.textContent = title; }, 1500);
      return true;
    } catch {  // without HTTPS, or refused
      return false;
    }
  }

  // Predicts lines in requests of at most as many texts as the service accepts.
  async function predictLines() {
    const lines = get("lines").value.split("\n").filter(line => line.trim()), mine = ++turn, found = [];
    const rows = lines.map(line => {
      const cells = model.text_columns.length > 1 ? line.split("\t") : [line];
      return Object.fromEntries(model.text_columns.map((name, i) => [name, cells[i] ?? ""]));
    });
    showError(null);
    for (let i = 0; i < rows.length; i += model.limits.texts) {
      get("status").textContent = "predicting";
      const content = await call("predict", {rows: rows.slice(i, i + model.limits.texts), ...(model.is_multilabel ? {top: 1} : {})});
      if (mine !== turn) return;
      found.push(...content.predictions);
    }
    const head = [...model.text_columns, ...(model.is_seq2seq ? ["output"] : ["label", "probability"])];
    const cells = found.map((one, i) => [...Object.values(rows[i]), ...(model.is_seq2seq ? [one.output]
      : model.is_multilabel ? [one.labels.join(", "), one.top[0].probability.toFixed(4)] : [one.label, one.probability.toFixed(4)])]);
    const line = (tag, values) => {
      const row = make("tr");
      row.append(...values.map((value, i) => {
        const cell = make(tag, head[i] === "probability" ? "num" : "text", value);
        if (tag === "th") cell.scope = "col";
        return cell;
      }));
      return row;
    };
    document.querySelector("#rows thead").replaceChildren(line("th", head));
    document.querySelector("#rows tbody").replaceChildren(...cells.map(values => line("td", values)));
    get("rows").hidden = get("copy").hidden = !cells.length;
    get("copy").onclick = () => copy([head, ...cells].map(values => values.map(value => value.replace(/[\t\n]/g, " ")).join("\t")).join("\n"), get("copy"));
    get("status").textContent = cells.length + " predictions";
  }

  const readFields = () => Object.fromEntries([...document.querySelectorAll("#fields textarea")].map(area => [area.name, area.value]));

  async function predict() {
    const mine = ++turn, button = get("go");
    showError(null);
    button.disabled = true;
    get("status").textContent = "predicting";
    try {
      row = readFields();
      const content = await call("predict", {rows: [row], ...(model.is_seq2seq ? {} : {top: model.labels.length})}).finally(() => { button.disabled = false; });
      if (mine !== turn) return;
      prediction = content.predictions[0];
      get("answer").hidden = false;
      get("output").hidden = !model.is_seq2seq;
      get("labels").hidden = model.is_seq2seq;
      if (model.is_seq2seq) {
        get("prediction").textContent = "Output";
        get("output").textContent = prediction.output;
        get("status").textContent = prediction.output;
        return;
      }
      const predicted = model.is_multilabel ? prediction.labels : [prediction.label];
      get("prediction").textContent = predicted.length ? predicted.join(", ") : "No label reaches its threshold";
      get("status").textContent = get("prediction").textContent + ", " + percent(prediction.top[0].probability);
      get("thresholds").hidden = !model.is_multilabel;
      showScores(FIRST_LABELS, predicted);
      get("more").hidden = prediction.top.length <= FIRST_LABELS;
      get("more").firstElementChild.onclick = () => { get("more").hidden = true; showScores(prediction.top.length, predicted); };
      await explain(predicted[0] || prediction.top[0].label, mine);
    } catch (failure) {
      if (mine === turn) { get("status").textContent = ""; showError(failure); }
    }
  }

  function showScores(count, predicted) {
    const pressed = document.querySelector("#scores [aria-pressed=true]");
    const chosen = pressed && pressed.dataset.label;
    get("scores").replaceChildren(...prediction.top.slice(0, count).map(({label, probability}) => {
      const item = make("li", predicted.includes(label) ? "predicted" : ""), button = make("button");
      const track = make("span", "track"), fill = make("span", "fill");
      button.type = "button";
      button.dataset.label = label;
      button.setAttribute("aria-pressed", String(label === chosen));
      fill.style.width = 100 * probability + "%";
      track.append(fill);
      if (model.is_multilabel) {
        const threshold = ((model.thresholds || {})[label] ?? 0.5), mark = make("span", "mark");
        mark.style.left = 100 * threshold + "%";
        track.append(mark);
        button.title = "threshold " + percent(threshold);
      }
      button.append(make("span", "name", label), track, make("span", "num", percent(probability)));
      button.onclick = () => { showError(null); explain(label, ++turn).catch(showError); };
      item.append(button);
      return item;
    }));
  }

  async function explain(label, mine) {
    const content = await call("explain", {row, label});
    if (mine !== turn) return;
    for (const button of document.querySelectorAll("#scores button")) button.setAttribute("aria-pressed", String(button.dataset.label === label));
    get("explanation").textContent = "Words for and against “" + label + "”";
    const pieces = Object.values(content.columns).flat().filter(piece => piece.weight !== null);
    const scale = Math.max(0.5, ...pieces.map(piece => Math.abs(piece.weight)));  // the floor keeps tiny weights pale
    get("words").replaceChildren(...Object.entries(content.columns).flatMap(([name, column]) => {
      const text = make("p", "words");
      text.dir = "auto";
      for (const piece of column) {
        if (piece.weight === null) { text.append(piece.text); continue; }
        const word = make("span", piece.weight >= 0 ? "for" : "against", piece.text), share = Math.abs(piece.weight) / scale;
        const color = "var(--c" + (piece.weight >= 0 ? 0 : 1) + ")";
        word.style.backgroundColor = "color-mix(in srgb, " + color + " " + Math.round(45 * share) + "%, transparent)";
        if (share >= 0.15) word.style.borderBottomColor = color;
        word.title = (piece.weight >= 0 ? "+" : "") + piece.weight.toFixed(2);
        text.append(word);
      }
      return model.text_columns.length > 1 ? [make("p", "hint", name), text] : [text];
    }));
    const strongest = [...pieces].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, 12);
    document.querySelector("#strongest tbody").replaceChildren(...strongest.map(piece => {
      const line = make("tr");
      line.append(make("td", "", piece.text), make("td", "num", (piece.weight >= 0 ? "+" : "") + piece.weight.toFixed(2)));
      return line;
    }));
    if (!strongest.length) get("explanation").textContent = "One word is not enough for an explanation";
    get("strongest").hidden = !strongest.length;
  }

  get("curl").addEventListener("click", async () => {
    get("command").textContent = command();
    get("command").hidden = await copy(command(), get("curl"));
  });
  get("many").addEventListener("submit", event => { event.preventDefault(); predictLines().catch(showError); });
  get("ask").addEventListener("submit", event => { event.preventDefault(); predict(); });
  get("ask").addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); predict(); }
  });
  get("access").addEventListener("submit", event => { event.preventDefault(); token = get("token").value.trim(); start(); });
  start();
})();
