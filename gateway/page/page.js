const $ = (id) => document.getElementById(id);
const STAGES = ["preprocess", "queue", "inference"];
const TOP = 5;
const LIST = new Intl.ListFormat("en", { type: "disjunction" });
const AT_ONCE = 4; // Below the browser's own limit of connections, whose waiting would be counted as the server's time.
const REFRESH_MS = 30_000;
const FIRST_RETRY_MS = 1_000;
const LAST_RETRY_MS = 15_000;
const PATIENCE_MS = 60_000;

let models = [];
let model = null; // the one in use
let chosen = null; // by name, to survive the server's absence
let retryMs = FIRST_RETRY_MS;
let refreshTimer;
let refreshing = false;
const waiting = [];
let sending = 0;

const percent = (p) => {
  if (p > 0 && p < 0.001) return "<0.1%";
  if (p < 1 && p >= 0.9995) return ">99.9%";
  return `${(p * 100).toFixed(1)}%`;
};
const duration = (ms) => `${ms.toFixed(ms < 1 ? 2 : ms < 100 ? 1 : 0)} ms`;
const size = (bytes) => (bytes < 1e3 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
const shellQuoted = (word) => (/^[\w.\/:-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);
const predictPath = (name) => `/v1/models/${encodeURIComponent(name)}/predict?top=${TOP}`;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The server's own sentence where it gave one. */
class Refusal extends Error {
  constructor(message, { codes = [], passing = false } = {}) {
    super(message);
    Object.assign(this, { codes, passing });
  }
}

async function ask(path, options, patience = PATIENCE_MS) {
  let response, text;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(patience) });
    text = await response.text();
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Refusal(late ? `The server did not answer within ${patience / 1000} seconds.` : "The server cannot be reached.", { passing: true });
  }
  let body = null;
  try { body = JSON.parse(text); } catch { /* handled below: not every failure speaks JSON */ }
  if (response.ok && body) return { body, headers: response.headers };
  const { message, code, reason } = body?.error ?? {};
  throw new Refusal(message ?? `The server answered with status ${response.status} and no explanation.`, {
    codes: [code, reason].filter(Boolean),
    passing: response.ok || response.status === 429 || response.status >= 500,
  });
}

// ---- Models

async function refreshModels() {
  if (refreshing) return;
  refreshing = true;
  clearTimeout(refreshTimer);
  let problem = "";
  try {
    const { body } = await ask("/v1/models", { cache: "no-store" }, 10_000);
    models = (body.models ?? []).filter((m) => m.accepts_images && m.state === "READY");
    if (!models.length) problem = "No model is ready yet.";
  } catch (refusal) {
    models = [];
    problem = refusal.message;
  }
  refreshing = false;
  useModel(problem);
  refreshTimer = setTimeout(refreshModels, problem ? retryMs : REFRESH_MS);
  retryMs = problem ? Math.min(retryMs * 2, LAST_RETRY_MS) : FIRST_RETRY_MS;
  pump();
}

// Live regions speak whenever they are written, so write only what changed.
const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };

function useModel(problem = "") {
  model = models.find((m) => m.name === chosen) ?? models[0] ?? null;
  const select = $("model-select");
  const names = models.map((m) => m.name);
  if ([...select.options].map((o) => o.value).join("\n") !== names.join("\n")) select.replaceChildren(...names.map((name) => new Option(name)));
  select.hidden = models.length < 2;
  $("model").dataset.state = model ? "ready" : "away";
  setText($("notice"), problem && `${problem} Trying again by itself; pictures you add now are sent as soon as a model is ready.`);
  setText($("model-state"), !model ? "Not ready" : models.length > 1 ? `version ${model.version}` : `${model.name}, version ${model.version}`);
  if (!model) return;
  select.value = model.name;
  const labels = model.labels ?? [];
  const some = labels.length > 12 ? [...labels.slice(0, 8), `${labels.length - 8} more`] : labels;
  setText($("knows"), labels.length ? `It may be ${LIST.format(some)}. ${model.name} picks from these even when the picture shows something else.` : "");
}

// ---- Cards

function addFiles(files) {
  for (const file of files) {
    const card = $("card-template").content.firstElementChild.cloneNode(true);
    const find = (name) => card.querySelector(`.${name}`);
    const name = file.name || "picture";
    find("file-name").textContent = name;
    find("file-meta").textContent = size(file.size);
    const thumb = find("thumb");
    thumb.alt = name;
    thumb.onload = () => { find("file-meta").textContent = `${thumb.naturalWidth} × ${thumb.naturalHeight}, ${size(file.size)}`; };
    thumb.onerror = () => thumb.replaceWith(element("span", "no-preview", "No preview"));
    thumb.src = URL.createObjectURL(file);
    const job = { file, name, card, find, modelName: model?.name };
    find("retry").onclick = () => { enqueue(job); card.focus(); };
    find("copy").onclick = (event) => copy(find("curl"), event.currentTarget);
    $("results").prepend(card);
    enqueue(job);
  }
  if (!files.length) return;
  $("hint").textContent = "";
  showResults(true);
  $("results").firstElementChild.scrollIntoView({ block: "nearest" });
}

function showResults(any) {
  $("results-section").hidden = !any;
  document.body.classList.toggle("has-results", any);
}

function show(job, state) {
  job.card.dataset.state = state;
  job.find("failure").hidden = state !== "failed";
  job.find("outcome").hidden = job.find("fine-print").hidden = state !== "done";
  job.find("pending").textContent = { waiting: model ? "Waiting for its turn…" : "Waiting for a model…", sending: `Asking ${job.modelName}…` }[state] ?? "";
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
    const bytes = await job.file.arrayBuffer().catch(() => { throw new Refusal("This file cannot be read."); });
    const began = performance.now();
    const answer = await ask(predictPath(job.modelName), {
      method: "POST",
      headers: { "Content-Type": job.file.type || "application/octet-stream" },
      body: bytes,
    });
    showAnswer(job, answer, performance.now() - began);
  } catch (refusal) {
    showFailure(job, refusal);
  }
}

function showFailure(job, refusal) {
  if (!(refusal instanceof Refusal)) {
    console.error(refusal);
    refusal = new Refusal("This page cannot read the server's answer.");
  }
  job.find("error-message").textContent = refusal.message;
  job.find("error-code").textContent = refusal.codes.join(" / ");
  job.find("retry").hidden = !refusal.passing;
  show(job, "failed");
  $("announce").textContent = `${job.name}: ${refusal.message}`;
  if (refusal.passing) refreshModels();
}

function showAnswer(job, { body, headers }, browserMs) {
  const [best] = body.predictions;
  job.find("top-label").textContent = best.label;
  job.find("top-probability").textContent = percent(best.probability);
  job.find("predictions").replaceChildren(...body.predictions.map(({ label, probability }) => {
    const row = element("li");
    const bar = element("div", "bar");
    const fill = element("div", "fill");
    bar.setAttribute("aria-hidden", "true");
    fill.style.setProperty("--part", probability);
    bar.append(fill);
    const name = element("span", "label", label);
    name.title = label;
    row.append(name, bar, element("span", "probability", percent(probability)));
    return row;
  }));
  showTiming(job, headers.get("Server-Timing"), browserMs);
  job.find("curl").textContent = `curl --data-binary @${shellQuoted(job.name)} ${shellQuoted(location.origin + predictPath(body.model))}`;
  job.find("prediction-id").textContent = body.prediction_id;
  job.find("prediction-model").textContent = `${body.model}, version ${body.version}`;
  show(job, "done");
  $("announce").textContent = `${job.name}: ${best.label}, ${percent(best.probability)}`;
  if (body.model === model?.name && body.version !== model.version) refreshModels(); // a newer version has gone live
}

function showTiming(job, header, browserMs) {
  const spent = Object.fromEntries([...(header ?? "").matchAll(/([\w-]+)\s*;\s*dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
  const stages = STAGES.filter((name) => name in spent).map((name) => [name, spent[name]]);
  const known = stages.reduce((sum, [, ms]) => sum + ms, 0);
  if (spent.total - known >= 0.05) stages.push(["other", spent.total - known]);
  const total = job.find("timing-total");
  total.replaceChildren(element("strong", "browser-total", duration(browserMs)), " in total, as this browser saw it");
  if (stages.length) total.append(", ", element("strong", "server-total", duration(spent.total ?? known)), " of it in the server:");
  job.find("timing-bar").replaceChildren(...stages.map(([name, ms]) => {
    const part = element("span");
    part.dataset.stage = name;
    part.style.setProperty("--part", ms);
    return part;
  }));
  job.find("stages").replaceChildren(...stages.map(([name, ms]) => {
    const stage = element("div");
    stage.dataset.stage = name;
    stage.append(element("dt", "", name), element("dd", "", duration(ms)));
    return stage;
  }));
}

async function copy(code, button) {
  getSelection().selectAllChildren(code);
  // The clipboard API exists only on https and localhost; the selection serves everywhere else.
  const copied = await (navigator.clipboard?.writeText(code.textContent).then(() => true, () => false) ?? document.execCommand("copy"));
  button.textContent = copied ? "Copied" : "Press Ctrl+C";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

// ---- Ways in

async function addAddress(address) {
  try {
    const response = await fetch(address);
    if (!response.ok) throw new Error(response.statusText);
    const blob = await response.blob();
    addFiles([new File([blob], address.split("/").pop(), { type: blob.type })]);
  } catch {
    $("hint").textContent = "This picture cannot be loaded.";
  }
}

async function showSamples() {
  const response = await fetch("/page/samples.json").catch(() => null);
  if (!response?.ok) return; // the page is whole without them
  for (const sample of await response.json()) {
    const button = element("button", "sample");
    const image = element("img");
    button.type = "button";
    button.dataset.label = button.title = sample.label;
    image.src = `/page/${sample.file}`;
    image.alt = `Sample picture: ${sample.label}`;
    button.append(image);
    button.onclick = () => addAddress(image.src);
    const item = element("li");
    item.append(button);
    $("sample-list").append(item);
  }
  $("samples").hidden = false;
}

function addTransfer(transfer, ifNone) {
  const address = transfer.getData("text/uri-list");
  if (transfer.files.length) addFiles(transfer.files);
  else if (address.startsWith(`${location.origin}/page/`)) addAddress(address); // a sample, dragged
  else $("hint").textContent = ifNone;
}

$("file").onchange = ({ target }) => {
  addFiles(target.files);
  target.value = ""; // so that the same file can be picked again
};
document.addEventListener("paste", (event) => addTransfer(event.clipboardData, "There is no picture on the clipboard."));
// The whole window takes drops: one that misses would otherwise replace this page with the picture.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  addTransfer(event.dataTransfer, "That was no file. Copy the picture and paste it here, or save it first.");
});

$("clear").onclick = () => {
  for (const thumb of document.querySelectorAll(".thumb")) URL.revokeObjectURL(thumb.src);
  $("results").replaceChildren();
  showResults(false);
  $("file").focus();
};
$("model-select").onchange = ({ target }) => {
  chosen = target.value;
  useModel();
};
addEventListener("online", refreshModels);

showSamples();
refreshModels();
