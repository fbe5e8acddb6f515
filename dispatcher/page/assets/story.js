// One run: opened in the list where it was asked for, and read again with each refresh.
import { actsOfRun, actsOfScope, fillActs } from "./acting.js";
import { isIsolated } from "./decided.js";
import { list, live, make, put, still } from "./dom.js";
import { duration, exact, plural, second, short, span } from "./words.js";
import { get, read } from "./wire.js";

let opened = null, told = null;
export const isOpen = (place, run) => opened?.place === place && opened.run_id === run.run_id;

export function opener() {
  const button = make("button", "open");
  button.type = "button";
  button.addEventListener("click", () => {
    const { place, run } = button.dataset;
    opened = isOpen(place, { run_id: run }) ? null : { place, run_id: run };
    told = null;
    document.dispatchEvent(new Event("opened"));
    askRun();
  });
  return button;
}

export function fillOpener(button, place, run, name) {
  button.dataset.place = place;
  button.dataset.run = run.run_id;
  button.setAttribute("aria-expanded", String(isOpen(place, run)));
  button.setAttribute("aria-label", `${name}, events of run ${run.run_id}`);
}

export async function askRun() {
  const which = opened;
  if (!which) return;
  let found = null;
  try {
    found = await read(await get(`run.json?${new URLSearchParams({ id: which.run_id })}`));
  } catch { /* No response, or none that is JSON: what was shown stays. */ }
  if (which !== opened || !found) return;
  told = found;
  document.querySelectorAll(".story:not([hidden])").forEach((story) => fillStory(story));
}

const EVENTS = { __proto__: null, run_requeued: "requeued", run_retried: "pending again", run_waiting: "waits", run_answered: "answered", run_started: "begun", run_failed: "failed", run_cancelled: "cancelled" };

export function makeStory() {
  const story = make("div", "story");
  story.append(make("p"), make("ol"), make("p", "muted"), make("div", "acts"));
  return story;
}

// What can be done to the run, to its workflow and to its workspace.
function fillActsOf(place, run, isolated) {
  const workflow = { workflow_id: run.workflow_id, name: run.workflow ?? `workflow ${short(run.workflow_id)}` };
  const workspace = { workspace_id: run.workspace_id, name: `workspace ${short(run.workspace_id ?? "")}` };
  const groups = [
    { label: "This run", acts: actsOfRun(run), target: { runs: [run.run_id] } },
    { label: workflow.name, acts: actsOfScope(workflow, isIsolated(isolated, run.workflow_id)), target: workflow },
    ...(run.workspace_id ? [{ label: workspace.name, acts: actsOfScope(workspace), target: workspace }] : []),
  ];
  fillActs(place, groups.filter((group) => group.acts.length));
}

export function fillStory(story, run, isolated) {
  const [state, events, note, acts] = story.children;
  if (run) fillActsOf(acts, run, isolated);
  if (!told || told.error) {
    still(state, told ? told.error : "Loading");
    list(events, [], String);
    put(note, "");
    return;
  }
  if (told.interrupts) {
    const answers = plural(told.interrupts, "answer", "answers"), since = exact.format(new Date(told.waiting_since));
    live(state, told.waiting_for + told.ago, (s) => `Waiting for ${answers} for ${span(s)}, since ${since}.`);
  } else if (told.waits_because) still(state, `Pending: ${told.waits_because}.`);
  else if (told.next_attempt_at) still(state, `Failed. Next attempt at ${exact.format(new Date(told.next_attempt_at))} (retry ${told.retries}).`);
  else still(state, told.dead ? "Dead: failed, and not tried again." : `${told.status ?? "deleted"}${told.attempts > 1 ? `, attempt ${told.attempts}` : ""}`);
  list(events, told.events.map((event, index) => ({ ...event, index })), (event) => `${event.index} ${event.at} ${event.what}`, () => {
    const item = make("li");
    item.append(make("time"), make("b"), make("span"), make("span"));
    return item;
  }, (item, event) => {
    const [at, what, by, detail] = item.children;
    const date = new Date(event.at);
    put(at, (Date.now() - date < 43_200_000 ? second : exact).format(date));
    at.dateTime = event.at;
    at.title = exact.format(date) + (event.after == null ? "" : `, ${duration(event.after)} after the event before`);
    put(what, EVENTS[event.what] ?? event.what);
    put(by, event.by);
    put(detail, event.detail ?? "");
  });
  const unread = [told.audit_readable ? "" : "audit log", told.trace_readable ? "" : "trace"].filter(Boolean).join(" and ");
  put(note, unread ? `This dispatcher's database role may not read the ${unread} of runs.` : "");
}
