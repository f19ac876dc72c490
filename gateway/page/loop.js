// How the model learns from its use: its accuracy there, what is being done about it, and what has happened.

const POLL_MS = { well: 10_000, badly: 60_000 };
const PATIENCE_MS = 10_000;
const MOST = 1_000; // events of one answer
const SHOWN = { events: 5, alarms: 3 };

const STEPS = { snapshot: "samples", run: "training", publish: "publishing", gate: "judging", shadow: "shadow", canary: "canary" };
const REASONS = {
  BY_HAND: "somebody asked for it",
  PROPOSED: "somebody proposed a version",
  DELETION: "what was deleted must be forgotten",
  ACCURACY: "the accuracy is too low",
  DRIFT: "something has drifted",
  ACCEPTED_SAMPLES: "there are enough new samples",
  SCHEDULE: "it was time",
};
const RULES = {
  WORSE_ON_HOLDOUT: "it is worse on pictures that no version learns from",
  WORSE_ON_LIVE: "it is worse on what users send",
  CLASS_DROP: "it is worse on one class",
  CALIBRATION_RISE: "its probabilities say less",
  LATENCY_RATIO: "it is too slow",
  SIZE_RATIO: "it is too large",
  CORRUPTED_DROP: "it bears spoilt pictures worse",
  HOLDOUT_DROP: "it is worse on pictures that no version learns from",
  NOT_PROVED: "nothing proved that it is as good as it must be",
  NOT_MEASURED: "not all that counts could be measured",
  NOT_MEASURABLE: "what counts can never be measured of it",
  NOT_WORSE_SPENT: "versions before it have become as much worse as they may",
  DOES_NOT_ANSWER: "a version did not answer what they are compared by",
  OTHER_LABELS: "a version tells other classes apart",
  SET_CHANGED: "pictures that it was to be judged on are lost",
  NO_THRESHOLD: "the policy does not say what it must reach",
  REJECTED_BY_HAND: "somebody rejected it",
  NO_TRAFFIC: "too few requests came to try it",
  SHADOW_DISAGREES: "it disagrees too often with the old version",
  SHADOW_FAILS: "it fails too often",
  SHADOW_SLOW: "it is too slow",
  CANARY_FAILS: "it fails too often",
  CANARY_SLOW: "it is too slow",
  RUN_FAILED: "training failed",
  NO_STRATEGY: "there was no way left to train it",
  TOO_LONG: "training took too long",
  CANDIDATE_GONE: "the new version is no longer there",
  CHAMPION_GONE: "the version that serves is no longer there",
  DEADLINE: "something must be forgotten, and the time for that is over",
  PROMOTED_BY_HAND: "somebody let another version serve",
  ROLLED_BACK: "somebody let the version before serve again",
  RUN_CANCELLED: "somebody cancelled its training",
  OTHER_PREPROCESS_SPEC: "it takes other pixels than the old version",
  CYCLE_UNDER_WAY: "another attempt is under way",
  NO_CANDIDATE: "there is no such new version",
  NO_CHAMPION: "the version that serves is not ready",
  NO_HOLDOUT: "there is nothing to judge a new version by",
  NO_VERSION_BEFORE: "there is no version to go back to",
  NOT_READY: "that version is not ready",
  STABLE_ALREADY: "that version serves already",
  TAINTED: "that version has learnt what must be forgotten",
  TRIAL_UNDER_WAY: "another version is being tried",
  TRAFFIC_CHANGED: "the traffic was changed outside the loop",
  DELETION: "something must be deleted first",
};
const ALARMS = {
  error_drift: "It makes more mistakes than before.",
  label_shift: "Users send other kinds of pictures than before.",
  softmax_shift: "Its answers are spread differently than before.",
  embedding_shift: "The pictures look different than before.",
};
// What is not here is a step in between.
const HAPPENED = {
  "cycle.started": ({ reason }, cycle) => `Cycle ${cycle} began: ${REASONS[reason] ?? words(reason)}.`,
  "run.created": ({ strategy }) => `Training began (${strategy}).`,
  "run.ended": ({ state }) => `Training ended: ${words(state)}.`,
  "candidate.published": ({ version }) => `Version ${version} was made; nobody sees it yet.`,
  "gate.decided": ({ outcome, ruling }) => (outcome === "PASSED" ? "It has proved to be as good as it must be." : `It was refused: ${why(ruling)}.`),
  "shadow.started": () => "It answers beside the old version, unseen.",
  "canary.moved": () => "It answers a part of the requests.",
  promoted: () => "The new version serves.",
  "traffic.changed": ({ stable }) => `The traffic was changed outside the loop${stable ? `: version ${stable} serves` : ""}.`,
  rolled_back: () => "The version before serves again.",
  "cycle.ended": ({ outcome, ruling }, cycle) => `Cycle ${cycle} ended: ${words(outcome)}${ruling?.rule ? `, since ${why(ruling)}` : ""}.`,
  "wish.declined": ({ rule }) => `What somebody asked for was declined: ${RULES[rule] ?? words(rule)}.`,
  "capture.paused": ({ reason }) => `No pictures are kept for now: ${words(reason)}.`,
  "capture.resumed": () => "Pictures are kept again.",
  "deletion.requested": () => "Something must be forgotten.",
  "deletion.completed": () => "What had to be forgotten is gone.",
  "policy.changed": () => "Another policy holds.",
};

const percent = (share) => `${(share * 100).toFixed(1)}%`;
const words = (name) => String(name ?? "unknown").toLowerCase().replaceAll("_", " ");
const figure = (value) => Number(value.toPrecision(3)).toString();
const AGO = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const WHEN = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "short" });

function why({ rule, figure: measured, bound } = {}) {
  const known = Number.isFinite(measured) && Number.isFinite(bound) && (measured || bound); // a message has 0 for none
  return `${RULES[rule] ?? words(rule)}${known ? ` (${figure(measured)} against ${figure(bound)})` : ""}`;
}

function ago(time) {
  const seconds = (Date.parse(time) - Date.now()) / 1000;
  const [unit, size] = [["day", 86_400], ["hour", 3_600], ["minute", 60]].find(([, size]) => -seconds >= size) ?? ["second", 1];
  return AGO.format(Math.min(Math.round(seconds / size), 0), unit);
}

// Fills `place` for the model that is followed, and hides it where there is no loop; `ask` is the page's.
export function watchLoop(place, ask) {
  let model = null;
  let last = null; // number of the newest event that was read
  let happened = [];
  let timer;
  let turns = 0;
  const find = (name) => place.querySelector(`.${name}`);

  async function poll() {
    const turn = ++turns; // another one, of this model or the next, makes what comes of this one worthless
    clearTimeout(timer);
    if (model === null || document.hidden) return;
    let wait = POLL_MS.badly;
    try {
      const { body: loop } = await ask(`/v1/models/${encodeURIComponent(model)}/loop`, { cache: "no-store" }, PATIENCE_MS);
      const news = loop.enabled && turn === turns ? await newEvents() : [];
      if (turn !== turns) return;
      last = news.at(-1)?.number ?? last;
      happened = [...happened, ...news.filter(({ kind }) => kind in HAPPENED)].slice(-SHOWN.events);
      place.hidden = !loop.enabled;
      if (loop.enabled) {
        show(loop);
        wait = POLL_MS.well;
      }
    } catch ({ passing }) {
      if (turn !== turns) return;
      if (!passing) place.hidden = true; // while the server is away for a moment, what was known still tells something
    }
    timer = setTimeout(poll, wait);
  }

  async function newEvents() {
    if (last !== null) return events("", last);
    const begun = await events("cycle.started", 0);
    return events("", (begun.at(-2)?.number ?? 1) - 1); // what was before the last cycle but one is of no interest any more
  }

  async function events(kind, after) {
    const all = [];
    let page;
    do {
      const parameters = new URLSearchParams({ after: all.at(-1)?.number ?? after, page_size: MOST, ...(kind && { kind }) });
      page = (await ask(`/v1/models/${encodeURIComponent(model)}/loop/events?${parameters}`, { cache: "no-store" }, PATIENCE_MS)).body.events;
      all.push(...page);
    } while (page.length === MOST);
    return all;
  }

  function show(loop) {
    showAccuracy(loop);
    showCycle(loop);
    find("alarms").replaceChildren(...loop.alarms.slice(0, SHOWN.alarms).map(({ kind, time, message }) => line(time, ALARMS[kind] ?? message, message)));
    find("events").replaceChildren(...happened.toReversed().map(({ kind, cycle, time, payload }) => line(time, HAPPENED[kind](payload ?? {}, cycle), kind)));
  }

  function showAccuracy({ live_accuracy: live, to_judge_count: waiting, cycle }) {
    write("estimate", live ? percent(live.estimate) : "Not measured yet");
    write("live-words", live ? `of version ${live.version}'s answers are right` : "");
    find("interval").hidden = !live;
    for (const [name, value] of Object.entries(live ? { low: live.low, high: live.high, at: live.estimate } : {})) find("interval").style.setProperty(`--${name}`, value);
    const wanted = waiting ? (cycle?.stage === "gate" && cycle.gate ? `${waiting} more reviews would help to judge the new version.` : `${waiting} pictures wait for a reviewer.`) : "";
    write("live-detail", live ? `Between ${percent(live.low)} and ${percent(live.high)}, by ${live.draw_count} reviewed pictures. ${wanted}` : wanted || "It takes reviews of pictures that were drawn at random.");
  }

  function showCycle({ cycle, last_cycle: before, next_trigger: next }) {
    write("stage", cycle ? stage(cycle) : "Nothing is being changed.");
    const stages = Object.keys(STEPS);
    const now = stages.indexOf(cycle?.stage);
    find("steps").hidden = now < 0;
    find("steps").replaceChildren(...stages.map((each, at) => {
      const step = Object.assign(document.createElement("li"), { textContent: STEPS[each] });
      step.dataset.step = at < now ? "done" : at === now ? "now" : "to-come";
      if (at === now) step.ariaCurrent = "step";
      return step;
    }));
    const refused = before?.refusal && !before.promoted ? ` The last attempt ended without a new version: ${why(before.refusal)}.` : "";
    write("next", `${cycle || !next ? "" : `The next attempt waits for ${next}.`}${cycle ? "" : refused}`.trim());
  }

  function stage({ stage: name, candidate_version: candidate, champion_version: champion }) {
    return {
      snapshot: "Choosing what to learn from.",
      run: "Training a new version.",
      publish: "Publishing a new version, which nobody sees yet.",
      gate: `Judging version ${candidate} against version ${champion}.`,
      shadow: `Version ${candidate} answers beside version ${champion}, unseen.`,
      canary: `Version ${candidate} answers a part of the requests.`,
    }[name] ?? "Coming to an end.";
  }

  function line(time, text, title) {
    const item = Object.assign(document.createElement("li"), { title });
    item.append(Object.assign(document.createElement("time"), { dateTime: time, title: WHEN.format(Date.parse(time)), textContent: ago(time) }), ` ${text}`);
    return item;
  }

  // Readers hear what is written, so only what changed is.
  function write(name, text) {
    if (find(name).textContent !== text) find(name).textContent = text;
  }

  document.addEventListener("visibilitychange", poll);
  return function follow(name) {
    if (name === model) return;
    [model, last, happened, place.hidden] = [name, null, [], true];
    poll();
  };
}
