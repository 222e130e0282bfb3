"use strict";
// Text of the model and of the user is written by textContent alone; requests go to the page's own host.
(() => {
  const get = id => document.getElementById(id);
  const FEW = 10;
  let model = null, token = "", asked = null, found = null, turn = 0;

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
      throw new Error("The service does not answer.");
    }
    const content = await response.json().catch(() => ({}));
    if (response.ok) return content;
    const failure = new Error(content.error ? content.error.message : "Status " + response.status);
    failure.status = response.status;
    throw failure;
  }

  function complain(failure) {
    get("trouble").textContent = failure ? failure.message : "";
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
      complain(failure);
      return;
    } finally {
      document.documentElement.dataset.ready = "";
    }
    complain(null);
    get("access").hidden = true;
    get("ask").hidden = false;
    get("name").textContent = model.name;
    document.title = model.name + " – txclf";
    const labels = model.labels.length;
    get("about").textContent = model.task === "seq2seq" ? "Makes a text from a text."
      : model.task === "multilabel" ? "Gives a text any of " + labels + " labels." : "Gives a text one of " + labels + " labels.";
    get("fields").replaceChildren(...model.text_columns.flatMap((name, i) => {
      const label = make("label", "field", name), area = make("textarea");
      label.htmlFor = area.id = "field-" + i;
      area.name = name;
      area.dir = "auto";
      return [label, area];
    }));
    get("field-0").focus();
  }

  const row = () => Object.fromEntries([...document.querySelectorAll("#fields textarea")].map(area => [area.name, area.value]));

  async function predict() {
    const mine = ++turn, button = get("go");
    complain(null);
    button.disabled = true;
    get("status").textContent = "asking";
    try {
      asked = row();
      const seq2seq = model.task === "seq2seq";
      const content = await call("predict", {rows: [asked], ...(seq2seq ? {} : {top: model.labels.length})});
      if (mine !== turn) return;
      found = content.predictions[0];
      get("answer").hidden = false;
      get("output").hidden = !seq2seq;
      get("labels").hidden = seq2seq;
      if (seq2seq) {
        get("found").textContent = "Output";
        get("output").textContent = found.output;
        get("status").textContent = found.output;
        return;
      }
      const given = model.task === "multilabel" ? found.labels : [found.label];
      get("found").textContent = given.length ? given.join(", ") : "No label reaches its threshold";
      get("status").textContent = get("found").textContent + ", " + percent(found.top[0].probability);
      get("thresholds").hidden = model.task !== "multilabel";
      show(FEW, given);
      get("more").hidden = found.top.length <= FEW;
      get("more").firstElementChild.onclick = () => { get("more").hidden = true; show(found.top.length, given); };
      await explain(given[0] || found.top[0].label, mine);
    } catch (failure) {
      if (mine === turn) { get("status").textContent = ""; complain(failure); }
    } finally {
      if (mine === turn) button.disabled = false;
    }
  }

  function show(count, given) {
    const pressed = document.querySelector("#scores [aria-pressed=true]");
    const chosen = pressed && pressed.dataset.label;
    get("scores").replaceChildren(...found.top.slice(0, count).map(({label, probability}) => {
      const item = make("li", given.includes(label) ? "given" : ""), button = make("button");
      const track = make("span", "track"), fill = make("span", "fill");
      button.type = "button";
      button.dataset.label = label;
      button.setAttribute("aria-pressed", String(label === chosen));
      fill.style.width = 100 * probability + "%";
      track.append(fill);
      if (model.task === "multilabel") {
        const threshold = ((model.thresholds || {})[label] ?? 0.5), mark = make("span", "mark");
        mark.style.left = 100 * threshold + "%";
        track.append(mark);
        button.title = "given from " + percent(threshold) + " on";
      }
      button.append(make("span", "name", label), track, make("span", "num", percent(probability)));
      button.onclick = () => { complain(null); explain(label, ++turn).catch(complain); };
      item.append(button);
      return item;
    }));
  }

  async function explain(label, mine) {
    const content = await call("explain", {row: asked, label});
    if (mine !== turn) return;
    for (const button of document.querySelectorAll("#scores button")) button.setAttribute("aria-pressed", String(button.dataset.label === label));
    get("why").textContent = "Words for and against “" + label + "”";
    const pieces = Object.values(content.columns).flat().filter(piece => piece.weight !== null);
    const most = Math.max(0.5, ...pieces.map(piece => Math.abs(piece.weight)));  // differences that are next to nothing stay pale
    get("words").replaceChildren(...Object.entries(content.columns).flatMap(([name, column]) => {
      const text = make("p", "words");
      text.dir = "auto";
      for (const piece of column) {
        if (piece.weight === null) { text.append(piece.text); continue; }
        const word = make("span", piece.weight >= 0 ? "for" : "against", piece.text), share = Math.abs(piece.weight) / most;
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
    if (!strongest.length) get("why").textContent = "A single word cannot be left out";
    get("strongest").hidden = !strongest.length;
  }

  get("ask").addEventListener("submit", event => { event.preventDefault(); predict(); });
  get("ask").addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); predict(); }
  });
  get("access").addEventListener("submit", event => { event.preventDefault(); token = get("token").value.trim(); start(); });
  start();
})();
