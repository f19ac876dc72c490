import { offerFeedback } from "./feedback.js";
import { watchLoop } from "./loop.js";

const TOP = 5;
const STAGES = ["preprocess", "queue", "inference"];
const AT_ONCE = 4; // Below the browser's own limit of connections: its waiting would be counted as the server's time.
const REFRESH_MS = 30_000;
const RETRY_MS = { first: 1_000, last: 15_000 };

let models = [];
let model = null; // the one in use
let chosen = null; // by name, to survive the server's absence
let refreshing = false;
let refreshTimer;
let retryMs = RETRY_MS.first;
let sending = 0;
const waiting = [];

const $ = (id) => document.getElementById(id);
const LIST = new Intl.ListFormat("en");
// A broken model's NaN arrives as null.
const percent = (p) => (p === null ? "n/a" : p > 0 && p < 0.001 ? "<0.1%" : p < 1 && p >= 0.9995 ? ">99.9%" : `${(p * 100).toFixed(1)}%`);
const duration = (ms) => `${ms.toFixed(ms < 1 ? 2 : ms < 100 ? 1 : 0)} ms`;
const size = (bytes) => (bytes < 1e3 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
const shellQuoted = (word) => (/^[\w./:-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);
const predictPath = (name) => `/v1/models/${encodeURIComponent(name)}/predict?top=${TOP}`;
const problem = (message, codes = [], passing = false) => Object.assign(new Error(message), { codes, passing });
// Live regions speak whenever they are written, so write only what changed.
const say = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };

function element(tag, { data, part, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  Object.assign(made.dataset, data);
  if (part !== undefined) made.style.setProperty("--part", part);
  made.append(...children); // strings become text, never markup
  return made;
}

async function ask(path, options, patienceMs) {
  let response, text;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(patienceMs) });
    text = await response.text();
  } catch ({ name }) {
    throw problem(name === "TimeoutError" ? `The server did not answer within ${patienceMs / 1000} seconds.` : "The server cannot be reached.", [], true);
  }
  let body = null;
  try { body = JSON.parse(text); } catch { /* not every failure speaks JSON */ }
  if (response.ok && body) return { body, headers: response.headers };
  const { message, code, reason } = body?.error ?? {};
  throw problem(
    message ?? `The server answered with status ${response.status} and no explanation.`,
    [code, reason].filter(Boolean),
    response.status === 429 || response.status >= 500,
  );
}

// ---- Models

async function refreshModels() {
  if (refreshing) return;
  refreshing = true;
  clearTimeout(refreshTimer);
  let trouble = "";
  try {
    const { body } = await ask("/v1/models", { cache: "no-store" }, 10_000);
    models = body.models.filter((m) => m.accepts_images && m.state === "READY");
    if (!models.length) trouble = "No model is ready yet.";
  } catch (error) {
    models = [];
    trouble = error.message;
  }
  refreshing = false;
  refreshTimer = setTimeout(refreshModels, trouble ? retryMs : REFRESH_MS);
  retryMs = trouble ? Math.min(retryMs * 2, RETRY_MS.last) : RETRY_MS.first;
  say("notice", trouble && `${trouble} Trying again by itself; pictures you add now are sent as soon as a model is ready.`);
  useModel();
  pump();
}

function useModel() {
  model = models.find((m) => m.name === chosen) ?? models[0] ?? null;
  const select = $("model-select");
  const names = models.map((m) => m.name);
  // Left alone while nothing changed, so that an open list does not close under the pointer.
  if (names.join("\n") !== [...select.options].map((o) => o.value).join("\n")) select.replaceChildren(...names.map((name) => new Option(name)));
  select.hidden = names.length < 2;
  $("model").dataset.state = model ? "ready" : "away";
  followLoop(model?.name ?? null);
  say("model-state", model ? `${select.hidden ? `${model.name}, ` : ""}version ${model.version}` : "Not ready");
  if (!model) return;
  select.value = model.name;
  const labels = model.labels ?? [];
  const some = labels.length > 12 ? [...labels.slice(0, 8), `${labels.length - 8} more`] : labels;
  say("knows", some.length ? `${model.name} knows ${LIST.format(some)}.\nIt picks from these even when the picture shows something else.` : "");
}

// ---- Pictures and their cards

function addFiles(files) {
  if (!files.length) return;
  say("hint", "");
  showResults(true);
  for (const file of files) {
    const card = $("card-template").content.firstElementChild.cloneNode(true);
    const find = (name) => card.querySelector(`.${name}`);
    const job = { file, find, card, name: file.name || "picture", modelName: model?.name };
    const thumb = find("thumb");
    const url = URL.createObjectURL(file);
    thumb.onload = () => {
      URL.revokeObjectURL(url);
      thumb.classList.toggle("tiny", thumb.naturalWidth <= 64 && thumb.naturalHeight <= 64);
      find("file-meta").textContent = `${thumb.naturalWidth} × ${thumb.naturalHeight}, ${size(file.size)}`;
    };
    thumb.onerror = () => thumb.replaceWith("No preview");
    Object.assign(thumb, { src: url, alt: job.name });
    find("file-name").textContent = job.name;
    find("file-meta").textContent = size(file.size);
    find("copy").onclick = () => copy(find("curl"), find("copy"));
    find("retry").onclick = () => {
      card.focus(); // the button is about to go
      enqueue(job);
    };
    $("results").prepend(card);
    enqueue(job);
  }
  $("results").firstElementChild.scrollIntoView({ block: "nearest" });
}

function showResults(any) {
  $("results-section").hidden = !any;
  document.body.classList.toggle("has-results", any);
}

function show({ card, find, modelName }, state) {
  card.dataset.state = state;
  find("failure").hidden = state !== "failed";
  find("outcome").hidden = find("fine-print").hidden = find("feedback").hidden = state !== "done";
  find("pending").textContent = { waiting: model ? "Waiting for its turn…" : "Waiting for a model…", sending: `Asking ${modelName}…` }[state] ?? "";
}

function enqueue(job) {
  show(job, "waiting");
  waiting.push(job);
  pump();
}

function pump() {
  while (model && waiting.length && sending < AT_ONCE) {
    const job = waiting.shift();
    if (!job.card.isConnected) continue; // cleared meanwhile
    job.modelName ??= model.name;
    sending += 1;
    predict(job).finally(() => { sending -= 1; pump(); });
  }
}

async function predict(job) {
  show(job, "sending");
  try {
    // Read first: a folder or a vanished file is not the server's fault, and the disk's time is not its time.
    const bytes = await job.file.arrayBuffer().catch(() => { throw problem("This file cannot be read."); });
    const headers = { "Content-Type": job.file.type || "application/octet-stream" };
    const began = performance.now();
    const answer = await ask(predictPath(job.modelName), { method: "POST", headers, body: bytes }, 60_000);
    showAnswer(job, answer, performance.now() - began);
  } catch (error) {
    showFailure(job, error);
  }
}

function showFailure(job, { message, codes = [], passing }) {
  job.find("error-message").textContent = message;
  job.find("error-code").textContent = codes.join(" / ");
  job.find("retry").hidden = !passing;
  show(job, "failed");
  say("announce", `${job.name}: ${message}`);
  if (passing) refreshModels();
}

function showAnswer(job, { body, headers }, browserMs) {
  if (!body.predictions?.length) throw problem("The server's answer holds no predictions.");
  const [best] = body.predictions;
  job.find("top-label").textContent = best.label;
  job.find("top-probability").textContent = percent(best.probability);
  job.find("predictions").replaceChildren(...body.predictions.map(({ label, probability }) => element("li", {},
    element("span", { className: "label", title: label }, label),
    element("div", { className: "bar", ariaHidden: "true" }, ...(probability === null ? [] : [element("div", { className: "fill", part: probability })])),
    element("span", { className: "probability" }, percent(probability)))));
  showTiming(job, headers.get("Server-Timing") ?? "", browserMs);
  job.find("curl").textContent = `curl --data-binary @${shellQuoted(job.name)} ${shellQuoted(location.origin + predictPath(body.model))}`;
  job.find("prediction-id").textContent = body.prediction_id;
  job.find("prediction-model").textContent = `${body.model}, version ${body.version}`;
  offerFeedback(job.find("feedback"), {
    best: best.label,
    labels: models.find((m) => m.name === body.model)?.labels ?? [],
    name: job.name,
    send: (verdict) => sendFeedback(job, body, verdict),
  });
  show(job, "done");
  say("announce", `${job.name}: ${best.label}, ${percent(best.probability)}`);
  if (body.model === model?.name && body.version !== model.version) refreshModels(); // another version has gone live
}

async function sendFeedback({ file }, { prediction_id, model, captured, predictions: [best] }, said) {
  const verdict = said.correct && !captured ? { label: best.label } : said; // it does not know its answer any more
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(verdict) };
  if (!captured) { // the server has not kept the picture, so it comes along
    const form = new FormData();
    for (const [name, value] of Object.entries({ ...verdict, model })) form.append(name, value);
    form.append("image", file);
    Object.assign(options, { headers: {}, body: form });
  }
  const { body } = await ask(`/v1/predictions/${prediction_id}/feedback`, options, 30_000);
  return body;
}

function showTiming({ find }, header, browserMs) {
  const spent = Object.fromEntries([...header.matchAll(/([\w-]+)\s*;\s*dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
  const stages = STAGES.filter((name) => name in spent).map((name) => [name, spent[name]]);
  const known = stages.reduce((sum, [, ms]) => sum + ms, 0);
  if (spent.total - known >= 0.05) stages.push(["other", spent.total - known]);
  find("timing-total").replaceChildren(element("strong", { className: "browser-total" }, duration(browserMs)), " in total as this browser saw it");
  if (stages.length) find("timing-total").append(", of which ", element("strong", { className: "server-total" }, duration(spent.total ?? known)), " in the server:");
  find("timing-bar").replaceChildren(...stages.map(([stage, ms]) => element("span", { data: { stage }, part: ms })));
  find("stages").replaceChildren(...stages.map(([stage, ms]) => element("div", { data: { stage } }, element("dt", {}, stage), element("dd", {}, duration(ms)))));
}

async function copy(code, button) {
  let copied = await navigator.clipboard?.writeText(code.textContent).then(() => true, () => false);
  if (!copied) { // the clipboard API exists only on https and localhost
    getSelection().selectAllChildren(code);
    copied = document.execCommand("copy");
  }
  button.textContent = copied ? "Copied" : "Press Ctrl+C";
  setTimeout(() => { button.textContent = "Copy"; }, 2_000);
}

// ---- Ways in

async function addAddress(address) {
  try {
    const response = await fetch(address);
    if (!response.ok) throw problem(response.statusText);
    const blob = await response.blob();
    addFiles([new File([blob], address.split("/").pop(), { type: blob.type })]);
  } catch {
    say("hint", "This picture cannot be loaded.");
  }
}

async function showSamples() {
  const response = await fetch("/page/samples.json").catch(() => null);
  if (!response?.ok) return; // the page is whole without them
  $("sample-list").replaceChildren(...(await response.json()).map(({ file, label }) => {
    const image = element("img", { src: `/page/${file}`, alt: `Sample picture: ${label}` });
    const onclick = () => addAddress(image.src);
    return element("li", {}, element("button", { type: "button", className: "sample", title: label, data: { label }, onclick }, image));
  }));
  $("samples").hidden = false;
}

function addTransfer(transfer, ifNone) {
  const address = transfer.getData("text/uri-list");
  if (transfer.files.length) addFiles(transfer.files);
  else if (address.startsWith(`${location.origin}/page/`)) addAddress(address); // a sample, dragged
  else say("hint", ifNone);
}

$("file").onchange = ({ target }) => {
  addFiles(target.files);
  target.value = ""; // so that the same file can be picked again
};
document.onpaste = (event) => addTransfer(event.clipboardData, "There is no picture on the clipboard.");
// The whole window takes drops: one that misses would otherwise replace this page with the picture.
const dragging = (on) => document.body.classList.toggle("dragging", on);
document.ondragover = (event) => { event.preventDefault(); dragging(true); };
document.ondragleave = (event) => { if (!event.relatedTarget) dragging(false); };
document.ondrop = (event) => {
  event.preventDefault();
  dragging(false);
  addTransfer(event.dataTransfer, "That was not a file. Copy the picture and paste it here, or save it first.");
};
$("clear").onclick = () => {
  $("results").replaceChildren();
  showResults(false);
  $("file").focus();
};
$("model-select").onchange = ({ target }) => { chosen = target.value; useModel(); };
window.ononline = refreshModels;
const followLoop = watchLoop($("loop"), ask);

showSamples();
refreshModels();
