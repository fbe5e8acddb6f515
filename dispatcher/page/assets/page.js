// Polls overview.json and shows it.
import { actsOfScope, beginActing, fillActs, mayAct } from "./acting.js";
import { isIsolated, showBacklog, showIsolated, showOperations, showPolicies } from "./decided.js";
import { $, list, live, make, put, tick } from "./dom.js";
import { showHealth, showNow } from "./health.js";
import { showRuns, showStuck, showWaiting } from "./lists.js";
import { showProcesses } from "./others.js";
import { askRun } from "./story.js";
import { ago, short, span } from "./words.js";
import { get, read } from "./wire.js";

const EVERY = 3000, SOON = 500, SLOWEST = 15000, OLD_SECONDS = 20;
const root = document.documentElement;
const filters = $("filters");

function showWorkflows(workflows) {
  const select = $("workflow"), chosen = wanted().workflow;
  const options = workflows.map((w) => [w.workflow_id, w.workflow ?? short(w.workflow_id)]);
  options.sort((a, b) => a[1].localeCompare(b[1]));
  if (document.activeElement === select && select.options.length > 1) return;
  list(select, [["", "All workflows"], ...options], ([id]) => id, () => make("option"), (option, [id, name]) => {
    option.value = id;
    put(option, name);
  });
  select.value = chosen;
}

// What can be done to the workflow that is chosen.
function showWorkflowActs({ workflows, isolated }) {
  const { workflow } = wanted(), found = workflows?.find((each) => each.workflow_id === workflow);
  $("workflow-acts").hidden = !found;
  if (!found) return;
  const scope = { workflow_id: workflow, name: found.workflow ?? `workflow ${short(workflow)}` };
  fillActs($("workflow-acts"), [{ label: scope.name, acts: actsOfScope(scope, isIsolated(isolated, workflow)), target: scope }]);
}

function showAbout({ dispatcher }) {
  live($("about"), dispatcher.up_for, (s) => `Served by the dispatcher on ${dispatcher.host} (${dispatcher.pid}), ${dispatcher.version}, up ${span(s)}. ${actors ?? ""}`);
  $("logout").hidden = !dispatcher.guarded;
  for (const button of document.querySelectorAll("button[data-picks]")) button.hidden = !mayAct();
}

// --- Asking ---
let asked = 0, seenLast = null, shownAt = null, figuresAgo = null, failures = 0, timer = null, actors = null;

function wanted() {
  return { status: filters.elements.status.value, workflow: filters.elements.workflow.value };
}

function query() {
  const chosen = Object.entries(wanted()).filter(([, value]) => value);
  return chosen.length ? `?${new URLSearchParams(chosen)}` : "";
}

// Returns what to show; null if the request failed, was superseded by a later one, or requires a token.
async function fetched(turn) {
  try {
    const answer = await get(`overview.json${query()}`);
    if (answer.status !== 401 && !answer.ok) throw new Error(String(answer.status));
    const seen = answer.ok ? await read(answer) : null;
    if (turn !== asked) return null;
    failures = 0;
    signIn(!seen);
    return seen;
  } catch {
    if (turn === asked) failures += 1;
    return null;
  }
}

async function ask() {
  clearTimeout(timer);
  const turn = ++asked, seen = await fetched(turn);
  if (turn !== asked) return;
  if ($("login").hidden) again(seen && seen.now && !seen.runs.rows ? SOON : EVERY);
  if (seen && actors === null) actors = await beginActing(seen.dispatcher.actions);
  if (turn !== asked) return;
  if (seen) show(seen);
  if (seen) askRun();
  tellFreshness();
}

function again(pause) {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(ask, Math.min(SLOWEST, pause * Math.max(1, failures)));
}

// The lists in which a run can be opened.
function showLists(seen) {
  showRuns(seen);
  showStuck(seen);
  showWaiting(seen);
}

function show(seen) {
  seenLast = seen;
  shownAt = performance.now();
  figuresAgo = seen.read.ago;
  showHealth(seen.health);
  if (seen.now) showNow(seen);
  if (seen.workflows) showWorkflows(seen.workflows);
  showPolicies(seen);
  showBacklog(seen);
  showLists(seen);
  showWorkflowActs(seen);
  showIsolated(seen);
  showOperations(seen);
  showProcesses(seen.processes);
  showAbout(seen);
  const beat = document.querySelector(".beat");
  beat.classList.add("now");
  requestAnimationFrame(() => requestAnimationFrame(() => beat.classList.remove("now")));
}

function tellFreshness() {
  const lost = failures > 0, since = shownAt == null ? null : (performance.now() - shownAt) / 1000;
  root.dataset.link = lost ? "lost" : "up";
  $("unreachable").hidden = !lost;
  if (lost) put($("unreachable"), `Cannot reach the dispatcher. ${since == null ? "No data was received yet." : `The data shown is ${span(since)} old.`} Retrying.`);
  const old = figuresAgo == null ? null : figuresAgo + (since ?? 0);
  root.dataset.figures = old != null && old > OLD_SECONDS ? "old" : "new";
  if (shownAt != null) put($("fresh"), old == null ? "no figures yet" : old < 6 ? "live" : `figures from ${ago(old)}`);
}

function choose() {
  history.replaceState(null, "", query() || location.pathname);
  $("runs-table").setAttribute("aria-busy", "true");
  ask();
}

// --- Token ---
function signIn(needed) {
  if ($("login").hidden === !needed) return;
  if (needed) actors = null;
  $("login").hidden = !needed;
  $("page").hidden = needed;
  document.querySelector("footer").hidden = needed;
  put($("fresh"), needed ? "signed out" : "live");
  if (needed) $("token").focus();
}

$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  let answer = null;
  try {
    answer = await get("login", { Authorization: `Bearer ${$("token").value.trim()}` });
  } catch { /* A token that is not valid in a header, or no response: reported below. */ }
  put($("login-wrong"), answer?.ok ? "" : answer?.status === 401 ? "The token is wrong." : "No answer. Try again.");
  if (!answer?.ok) return;
  $("token").value = "";
  ask();
});
$("logout").addEventListener("click", async () => {
  await get("logout").catch(() => null);
  ask();
});

// --- Start ---
const start = new URLSearchParams(location.search);
const radio = filters.querySelector(`input[value="${CSS.escape(start.get("status") ?? "")}"]`);
if (radio) radio.checked = true;
if (start.get("workflow")) {
  const option = make("option", "", short(start.get("workflow")));
  option.value = option.dataset.key = start.get("workflow");
  $("workflow").firstElementChild.dataset.key = "";
  $("workflow").append(option);
  $("workflow").value = option.value;
}
filters.addEventListener("change", choose);
filters.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : ask()));
document.addEventListener("opened", () => seenLast && showLists(seenLast));
document.addEventListener("acted", ask);
document.addEventListener("unfilter", () => {
  filters.reset();
  choose();
  filters.elements.status[0].focus();
});
setInterval(() => {
  tick();
  tellFreshness();
}, 1000);
ask();
