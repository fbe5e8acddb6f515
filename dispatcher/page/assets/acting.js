// Actions: the dialog that asks for a reason and confirms, and the runs that are selected.
import { $, list, make, put } from "./dom.js";
import { plural, short } from "./words.js";
import { post, whoActs } from "./wire.js";

export const MOST_RUNS = 200;
const HINT_MILLISECONDS = 20_000, SHOWN_IDS = 5;
const dialog = $("act"), form = $("act-form"), why = $("act-why");
let acting = false, current = null, policies = [];

export const mayAct = () => acting;

// Asks who acts, once: without an answer the page stays read-only.
export async function beginActing(on) {
  if (!on) return "This page is read-only.";
  const { by, error } = await whoActs();
  acting = Boolean(by);
  document.documentElement.classList.toggle("acting", acting);
  return by ? `Acting as ${by}.` : `This page is read-only: ${error}`;
}

// --- What can be done ---
const TIMES = [["", "until ended by hand"], ["900", "15 minutes"], ["3600", "1 hour"], ["14400", "4 hours"], ["86400", "1 day"], ["604800", "7 days"]];
const PERIODS = [["1", "second"], ["60", "minute"], ["3600", "hour"], ["86400", "day"]];
const STEPS = [["", "none"], ...[5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5].map((step) => [String(step), step > 0 ? `+${step}` : String(step)])];
const numeric = (value) => (value === "" ? null : Number(value));
const duration = { name: "seconds", label: "For how long", options: TIMES };
const limits = [
  { name: "max_running", label: "Runs at the same time, at most (empty: no limit)", min: 1, max: 1_000_000 },
  { name: "rate_runs", label: "Runs that begin per period, at most (empty: no limit)", min: 1, max: 1_000_000 },
  { name: "rate_seconds", label: "Period", options: PERIODS },
];
const ACTS = {
  requeue: { verb: "Requeue", note: "Each run becomes pending again with all its attempts, and continues after its last stored step." },
  restart: { verb: "Requeue from start", action: "requeue", body: { from_start: true }, note: "Each run becomes pending again with all its attempts, and repeats all its steps." },
  cancel: { verb: "Cancel", note: "Each run ends as cancelled. A worker that executes it stops within two heartbeats." },
  fail: { verb: "Fail", note: "Each run ends as failed, unless a live worker executes it." },
  pause: { verb: "Pause", fields: [duration], note: "None of its runs is claimed or begins. Runs that are running go on." },
  unpause: { verb: "Unpause", note: "The pause ends. A pause of a wider scope stays in force." },
  limit: { verb: "Limit", fields: limits, note: "Each limit holds for all runs of it together. Runs beyond it stay pending." },
  priority: { verb: "Priority of", fields: [{ name: "priority", label: "Priority", options: STEPS }], note: "Each step doubles the share of turns." },
  isolate: { verb: "Isolate", fields: [duration], note: "Its runs get processes of their own." },
  "clear-isolation": { verb: "End isolation of", note: "Its runs share processes again." },
  maintenance: { verb: "Start maintenance", body: { on: true }, note: "No run is claimed and none begins, in any workflow. Runs that are running go on." },
  reopen: { verb: "End maintenance", action: "maintenance", body: { on: false }, note: "Runs are claimed and begin again." },
};

const DONE = { requeue: "requeued", restart: "requeued from the start", cancel: "cancelled", fail: "failed" };
const nameOf = (scope) => scope.name ?? (scope.workflow_id ? `workflow ${short(scope.workflow_id)}` : scope.workspace_id ? `workspace ${short(scope.workspace_id)}` : "all runs");
const idsOf = ({ workflow_id, workspace_id }) => (workflow_id ? { workflow_id } : workspace_id ? { workspace_id } : {});

export const known = (found) => { policies = found ?? []; };
export const policyOf = (scope) => policies.find((each) => (scope.workflow_id ? each.workflow_id === scope.workflow_id
  : scope.workspace_id ? each.workspace_id === scope.workspace_id && !each.workflow_id : each.scope === "all"));

// --- Buttons: one per action, kept between two refreshes, so that focus stays ---
export function fillActs(parent, groups) {
  parent.hidden = !acting;
  if (!acting) return;
  list(parent, groups, (group) => group.label, () => {
    const group = make("div", "group");
    group.setAttribute("role", "group");
    group.append(make("span", "muted"), make("span", "buttons"));
    return group;
  }, (group, { label, acts, target }) => {
    const [title, buttons] = group.children;
    group.setAttribute("aria-label", label);
    put(title, label);
    list(buttons, acts, String, (name) => {
      const button = make("button", "act");
      button.type = "button";
      button.addEventListener("click", () => openAct(name, button.target));
      return button;
    }, (button, name) => {
      button.target = target;
      const words = { "Priority of": "Priority", "End isolation of": "End isolation" }[ACTS[name].verb] ?? ACTS[name].verb;
      put(button, words);
      button.setAttribute("aria-label", `${words}: ${label}`);
    });
  });
}

export function actsOfRun(run) {
  const live = run.status === "pending" || run.status === "running", retried = run.next_attempt_at != null;
  return [
    ...(run.status === "pending" || run.status === "succeeded" || run.interrupts ? [] : ["requeue", "restart"]),
    ...(live || retried ? ["cancel", "fail"] : []),
  ];
}

export function actsOfScope(scope, isolated) {
  const policy = policyOf(scope);
  const pauses = [policy?.paused ? "unpause" : "pause", "limit"];
  return scope.workflow_id ? [...pauses, "priority", isolated ? "clear-isolation" : "isolate"] : scope.workspace_id ? [...pauses, "priority"] : pauses;
}

// --- The dialog ---
function openAct(name, target) {
  const act = ACTS[name], runs = target.runs;
  current = { name, act, target };
  const what = runs ? plural(runs.length, "run", "runs") : name === "maintenance" || name === "reopen" ? "" : nameOf(target);
  put($("act-title"), `${act.verb} ${what}`.trim());
  put($("act-yes"), `${act.verb} ${runs ? what : ""}`.replace(/ of\s*$/, "").trim());
  put($("act-note"), act.note);
  const shown = (runs ?? []).slice(0, SHOWN_IDS).map((id) => ({ id }));
  if (runs?.length > SHOWN_IDS) shown.push({ id: `and ${runs.length - SHOWN_IDS} more` });
  list($("act-runs"), shown, (each) => each.id, () => make("li"), (item, each) => put(item, each.id));
  $("act-runs").hidden = !shown.length;
  $("act-fields").replaceChildren(...(act.fields ?? []).map((field) => makeField(field, policyOf(target))));
  why.value = "";
  put($("act-wrong"), "");
  dialog.showModal();
  (form.querySelector("select, input") ?? why).focus();
}

function makeField(field, policy) {
  const row = make("div", "field"), label = make("label", "", field.label), control = make(field.options ? "select" : "input");
  control.name = field.name;
  control.id = label.htmlFor = `act-${field.name}`;
  if (field.options) {
    control.append(...field.options.map(([value, text]) => {
      const option = make("option", "", text);
      option.value = value;
      return option;
    }));
    control.value = String(policy?.[field.name] ?? field.options[0][0]);
    if (!control.value) control.value = field.options[0][0];
  } else {
    Object.assign(control, { type: "number", min: field.min, max: field.max, step: 1, inputMode: "numeric", value: policy?.[field.name] ?? "" });
  }
  row.append(label, control);
  return row;
}

function bodyOf({ act, target }) {
  const body = { ...act.body, why: why.value.trim(), ...(target.runs ? { runs: target.runs } : idsOf(target)) };
  for (const { name } of act.fields ?? []) body[name] = numeric(form.elements[name].value);
  if ("rate_runs" in body && body.rate_runs == null) body.rate_seconds = null;
  return body;
}

function told({ name, act, target }, { changed, refused }) {
  if (!target.runs) return `Done: ${act.verb.toLowerCase()} ${nameOf(target)}.`.replace(/maintenance .*/, "maintenance.");
  const reasons = [...new Set(refused.map((each) => each.because))];
  return `${plural(changed, "run", "runs")} ${DONE[name]}${refused.length ? `, ${plural(refused.length, "run was", "runs were")} not: ${reasons.join("; ")}` : ""}.`;
}

let hint = null;
function say(text) {
  put($("said"), text);
  clearTimeout(hint);
  hint = setTimeout(() => put($("said"), ""), HINT_MILLISECONDS);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const act = current, button = $("act-yes");
  if (button.disabled) return;
  if (!why.value.trim()) {
    put($("act-wrong"), "Give a reason.");
    return;
  }
  button.disabled = true;
  put($("act-wrong"), "");
  let answer;
  try {
    answer = await post(act.act.action ?? act.name, bodyOf(act));
  } catch {
    answer = { error: "No answer. Look at the operations before you try again." };
  }
  button.disabled = false;
  if (answer.error) {
    put($("act-wrong"), answer.error);
    return;
  }
  dialog.close();
  if (act.target.runs) unselect(act.target.runs);
  say(told(act, answer));
  document.dispatchEvent(new Event("acted"));
});
$("act-no").addEventListener("click", () => dialog.close());

// --- Selected runs: across all lists, until an action was done or they are unselected ---
const selected = new Set();

export function makePick() {
  const pick = make("input", "pick");
  pick.type = "checkbox";
  pick.addEventListener("change", () => {
    if (pick.checked && selected.size < MOST_RUNS) selected.add(pick.value);
    else selected.delete(pick.value);
    showSelected();
  });
  return pick;
}

export function fillPick(pick, run) {
  pick.hidden = !acting;
  pick.value = run.run_id;
  pick.checked = selected.has(run.run_id);
  pick.setAttribute("aria-label", `Select run ${run.run_id}`);
}

function unselect(run_ids) {
  for (const run_id of run_ids) selected.delete(run_id);
  showSelected();
}

function showSelected() {
  for (const pick of document.querySelectorAll(".pick")) pick.checked = selected.has(pick.value);
  const runs = [...selected], focused = $("chosen").contains(document.activeElement);
  $("chosen").hidden = !runs.length;
  put($("chosen-count"), `${plural(runs.length, "run", "runs")} selected${runs.length === MOST_RUNS ? ", which is the most at once" : ""}`);
  fillActs($("chosen-acts"), [{ label: "Selected runs", acts: ["requeue", "restart", "cancel", "fail"], target: { runs } }]);
  if (focused && !runs.length) $("runs").focus();
}

$("chosen-none").addEventListener("click", () => unselect([...selected]));
for (const button of document.querySelectorAll("button[data-picks]")) {
  button.addEventListener("click", () => {
    const picks = [...$(button.dataset.picks).querySelectorAll(".pick")];
    const all = picks.every((pick) => pick.checked);
    for (const pick of picks) {
      if (all) selected.delete(pick.value);
      else if (selected.size < MOST_RUNS) selected.add(pick.value);
    }
    showSelected();
  });
}
