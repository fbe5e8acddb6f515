// What operators decided and did: policies in force, maintenance, isolated workflows and the newest operations.
import { actsOfScope, fillActs, known, mayAct } from "./acting.js";
import { $, list, live, make, put, still } from "./dom.js";
import { entry } from "./others.js";
import { ago, exact, number, plural, short, span } from "./words.js";

const UNITS = { 1: "s", 60: "min", 3600: "h", 86400: "d" };
const per = (seconds) => UNITS[seconds] ?? span(seconds);

// Texts of the fields that are in force.
function fieldsOf(p) {
  return [
    p.maintenance && "maintenance",
    p.paused === true && "paused",
    p.paused === false && "not paused",
    p.max_running != null && `at most ${number(p.max_running)} at a time`,
    p.rate_runs != null && `at most ${number(p.rate_runs)} per ${per(p.rate_seconds)}`,
    p.priority != null && `priority ${p.priority > 0 ? "+" : ""}${p.priority}`,
    p.queue != null && `queue ${p.queue}`,
    p.timeout_seconds != null && `timeout ${span(p.timeout_seconds)}`,
    p.lost_runs != null && `lost runs: ${p.lost_runs}`,
    p.retries != null && `retries: ${p.retries}`,
    p.isolation != null && `isolation: ${p.isolation}`,
  ].filter(Boolean);
}

const scopeOf = (row) => (row.workflow_id ? row.workflow ?? `workflow ${short(row.workflow_id)}`
  : row.workspace_id ? `workspace ${short(row.workspace_id)}` : "All runs");

export function showPolicies({ policies, isolated }) {
  known(policies);
  const all = policies?.find((p) => p.scope === "all"), closed = Boolean(all?.maintenance);
  $("maintenance").hidden = !closed;
  if (closed) put($("maintenance"), `Maintenance: no run is claimed and none begins. ${all.why ? `${all.why} ` : ""}(${all.by})`);
  $("policies").hidden = !policies || !(policies.length || mayAct());
  if (!policies) return;
  fillActs($("all-acts"), [{ label: "All runs", acts: [closed ? "reopen" : "maintenance", ...actsOfScope({})], target: {} }]);
  list($("policies-rows"), policies, (p) => `${p.scope} ${p.workspace_id ?? ""} ${p.workflow_id ?? ""}`, () => entry(() => [make("div", "acts")]), (item, p) => {
    const [name, end, fields, by, acts] = item.children;
    fields.className = "note wide";
    put(name, scopeOf(p));
    name.title = p.workflow_id ?? p.workspace_id ?? "all runs";
    end.className = p.paused || p.maintenance ? "end status stuck" : "end";
    if (p.paused && p.paused_for != null) live(end, -p.paused_for, (s) => `paused, ${span(-s)} left`);
    else still(end, p.maintenance ? "maintenance" : p.paused ? "paused" : "");
    const said = [fieldsOf(p).join(", "), p.why].filter(Boolean).join(": ");
    put(fields, said);
    fields.title = said;
    live(by, p.ago, (s) => `${p.by}, ${ago(s)}`);
    by.title = p.by;
    const scope = { workflow_id: p.workflow_id, workspace_id: p.workspace_id, name: scopeOf(p) };
    if (p.scope === "all") acts.hidden = true;
    else fillActs(acts, [{ label: scope.name, acts: actsOfScope(scope, isIsolated(isolated, p.workflow_id)), target: scope }]);
  });
  put($("policies-count"), policies.length ? number(policies.length) : "none in force");
}

const WAITS = {
  maintenance: "maintenance", paused: "paused", no_worker: "no worker consumes its queue", limit_reached: "limit reached",
  rate_used_up: "rate used up", queued: "waits for a worker", in_turn: "waits for its turn",
};

// The workflows with the most pending runs, so that one that floods can be paused or limited.
export function showBacklog({ backlog, now }) {
  if (!backlog) return;
  $("backlog").hidden = !backlog.length;
  list($("backlog-rows"), backlog, (w) => w.workflow_id, () => entry(() => [make("div", "acts")]), (item, w) => {
    const [name, count, waits, oldest, acts] = item.children;
    const scope = { workflow_id: w.workflow_id, name: w.workflow ?? `workflow ${short(w.workflow_id)}` };
    put(name, scope.name);
    name.title = w.workflow_id;
    put(count, number(w.pending));
    put(waits, [WAITS[w.reason] ?? "", w.by && `by ${w.by}`].filter(Boolean).join(", "));
    waits.title = [waits.textContent, w.why].filter(Boolean).join(": ");
    live(oldest, w.oldest_age, (s) => `oldest ${span(s)}`);
    fillActs(acts, [{ label: scope.name, acts: actsOfScope(scope).slice(0, 2), target: scope }]);
  });
  put($("backlog-count"), `${number(now.pending)} pending`);
}

export const isIsolated = (isolated, workflow_id) => Boolean(isolated?.some((each) => each.workflow_id === workflow_id));

export function showIsolated({ isolated, now }) {
  if (!isolated) return;
  $("isolated").hidden = !isolated.length;
  list($("isolated-rows"), isolated, (w) => `${w.workflow_id} ${w.workflow_version_id ?? ""}`, () => entry(() => [make("code"), make("div", "acts")]), (item, w) => {
    const [name, until, reason, by, version, acts] = item.children;
    put(name, w.workflow ?? short(w.workflow_id));
    name.title = w.workflow_id;
    put(until, w.until == null ? "until cleared" : `until ${exact.format(new Date(w.until))}`);
    put(reason, w.reason);
    reason.title = w.reason;
    put(by, w.times ? `by ${w.by}, ${number(w.times)}×` : `by ${w.by}`);
    put(version, w.workflow_version_id ?? "all versions");
    const scope = { workflow_id: w.workflow_id, name: w.workflow ?? `workflow ${short(w.workflow_id)}` };
    fillActs(acts, [{ label: `${scope.name}, isolation`, acts: ["clear-isolation"], target: scope }]);
  });
  put($("isolated-count"), now.isolated > isolated.length ? `${number(isolated.length)} of ${number(now.isolated)}` : number(isolated.length));
}

// What was set, as `paused true`; an attempt that was refused has its reason there.
function detailsOf({ details, action }) {
  if (details.refused_because) return `${details.refused_because}${details.left_out ? ` And ${plural(details.left_out, "attempt", "attempts")} before it.` : ""}`;
  const fields = Object.entries(details).filter(([name]) => name !== "paused_until");
  return action.startsWith("policy") ? fields.map(([name, value]) => `${name.replaceAll("_", " ")} ${value ?? "unset"}`).join(", ") : "";
}

export function showOperations({ operations }) {
  $("operations").hidden = !operations?.length;
  if (!operations) return;
  list($("operations-rows"), operations, (o) => String(o.id), () => entry(() => [make("span", "note wide")]), (item, o) => {
    const [name, when, by, count, why] = item.children;
    const attempt = o.details.refused_because;
    item.className = attempt ? "refused" : "";
    put(name, attempt ? `${o.details.asked ?? o.action} refused` : o.action);
    live(when, o.ago, ago);
    put(by, `${o.by} · ${o.interface}`);
    by.title = o.by;
    const rows = o.runs ? plural(o.runs, "run", "runs") : o.workflow_id || o.workspace_id ? scopeOf(o) : o.action.startsWith("policy") && !attempt ? "all runs" : "";
    put(count, `${rows}${o.refused && !attempt ? `${rows ? ", " : ""}${number(o.refused)} refused` : ""}`);
    count.title = o.run_id ?? o.workflow_id ?? o.workspace_id ?? "";
    const said = [detailsOf(o), o.why].filter(Boolean).join(": ");
    put(why, said);
    why.title = said;
  });
  put($("operations-count"), `the last ${number(operations.length)}`);
}
