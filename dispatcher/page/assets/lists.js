// The lists of runs: recent ones, stuck and lost ones, and those that wait or are dead.
import { fillPick, makePick } from "./acting.js";
import { $, list, live, make, put, still } from "./dom.js";
import { entry } from "./others.js";
import { fillOpener, fillStory, isOpen, makeStory, opener } from "./story.js";
import { ago, duration, exact, number, plural, second, short, span } from "./words.js";

const REASONS = { __proto__: null, timed_out: "timed out", worker_lost: "worker lost", lease_over: "lease expired", unstorable_output: "output not storable" };

function stateOf(run) {
  if (run.stuck) return ["stuck", "stuck", ""];
  if (run.status === "pending") return ["pending", "pending", run.state === "claimed" || run.state === "published" ? "queued" : ""];
  const word = run.status === "cancelled" || run.status === "succeeded" ? "" : run.reason;
  const known = ["running", "succeeded", "failed", "cancelled"].includes(run.status) ? run.status : "other";
  const note = run.status === "running" ? (run.attempts > 1 ? `attempt ${run.attempts}` : "") : REASONS[word] ?? word ?? "";
  return [known, run.status, run.next_attempt_at ? [`retry ${second.format(new Date(run.next_attempt_at))}`, note].filter(Boolean).join(", ") : note];
}

const retryOf = (run) => `retry ${run.retries} at ${second.format(new Date(run.next_attempt_at))}`;

export function showRuns({ runs, isolated }) {
  const rows = runs.rows;
  // Not read yet: the previous rows stay, dimmed, until it is.
  if (!rows) return;
  $("runs-table").removeAttribute("aria-busy");
  const items = rows.flatMap((run) => (isOpen("runs", run) ? [run, { run_id: run.run_id, story: true, of: run }] : [run]));
  list($("runs-rows"), items, (run) => (run.story ? `story ${run.run_id}` : run.run_id), (run) => {
    const row = make("tr");
    if (run.story) {
      const cell = make("td", "told");
      cell.colSpan = 7;
      cell.append(makeStory());
      row.append(cell);
      return row;
    }
    for (const name of ["", "", "id", "quiet", "right quiet", "right", "right quiet"]) row.append(make("td", name));
    const status = make("span", "status");
    status.append(make("span"), make("em"));
    row.children[0].append(makePick(), opener());
    row.children[0].lastChild.append(status);
    return row;
  }, (row, run) => {
    if (run.story) return fillStory(row.querySelector(".story"), run.of, isolated);
    const [status, workflow, id, by, waited, ran, when] = row.children;
    const [style, word, note] = stateOf(run), [pick, button] = status.children, shown = button.firstChild;
    fillPick(pick, run);
    shown.className = `status ${style}`;
    put(shown.children[0], word);
    put(shown.children[1], note);
    fillOpener(button, "runs", run, note ? `${word} ${note}` : word);
    shown.title = note ? `${word}, ${note}` : word;
    put(workflow, run.workflow ?? run.workflow_id);
    workflow.title = run.workflow ? `${run.workflow} (${run.workflow_id})` : run.workflow_id;
    put(id, run.run_id);
    id.title = run.run_id;
    put(by, run.triggered_by);
    by.title = run.triggered_by;
    if (run.status === "pending") live(waited, run.waited, span);
    else still(waited, duration(run.waited));
    if (run.state === "running" && run.status === "running") live(ran, run.ran, span);
    else still(ran, run.ran == null ? "" : duration(run.ran));
    live(when, run.changed_ago, ago);
    when.title = `created ${exact.format(new Date(run.created_at))}`;
  });
  const filtered = runs.status || runs.workflow;
  $("runs-table").hidden = !rows.length;
  $("runs-empty").hidden = rows.length > 0;
  if (rows.length) return;
  const words = filtered ? "No such run among the runs that have not ended and the newest 20,000 that have." : "No runs yet. The first one appears here as soon as the API creates it.";
  if ($("runs-empty").firstChild?.textContent === words) return;
  $("runs-empty").replaceChildren(words);
  if (filtered) {
    const all = make("button", "", "Show all runs");
    all.type = "button";
    all.addEventListener("click", () => document.dispatchEvent(new Event("unfilter")));
    $("runs-empty").append(all);
  }
}

// Runs of the side lists. `describe` returns the colour of a run's state, a note, and seconds with the words for them, or a text.
function showSide(id, rows, isolated, describe) {
  list($(id), rows, (run) => `${run.how} ${run.run_id}`, () => {
    const item = entry(() => [make("code"), makeStory()]);
    item.firstChild.append(makePick(), opener());
    return item;
  }, (item, run) => {
    const [name, status, note, when, code, story] = item.children, place = `${run.how} of ${id}`;
    const workflow = run.workflow ?? short(run.workflow_id), [style, text, seconds, words] = describe(run);
    const [pick, button] = name.children;
    fillPick(pick, run);
    put(button, workflow);
    fillOpener(button, place, run, workflow);
    name.title = run.workflow_id;
    status.className = `end status ${style}`;
    put(status, run.how);
    put(note, text);
    note.title = text;
    if (words) live(when, seconds, words);
    else still(when, seconds);
    put(code, run.run_id);
    story.hidden = !isOpen(place, run);
    if (!story.hidden) fillStory(story, run, isolated);
  });
}

const of = (how, runs) => runs.map((run) => ({ ...run, how }));

export function showStuck({ stuck, lost, now, isolated }) {
  if (!stuck) return;
  const rows = [...of("stuck", stuck), ...of("lost", lost)];
  showSide("stuck-rows", rows, isolated, (run) => (run.how === "stuck"
    ? ["stuck", `attempt ${run.attempts}, no heartbeat`, run.silent_for, span]
    : ["failed", `attempt ${run.attempts}, settled as failed`, run.changed_ago, ago]));
  put($("stuck-count"), rows.length ? `${number(now.stuck)} stuck, ${number(lost.length)}${lost.length === 10 ? "+" : ""} lost in 24 h` : "");
  $("stuck-empty").hidden = rows.length > 0;
  put($("stuck-empty"), "No run is stuck. No run was lost in the last 24 hours.");
}

export function showWaiting({ retrying, waiting, dead, now, isolated }) {
  $("waiting").hidden = !retrying;
  if (!retrying) return;
  const rows = [...of("retrying", retrying), ...of("waiting", waiting), ...of("dead", dead)];
  showSide("waiting-rows", rows, isolated, (run) => {
    if (run.how === "waiting") return ["pending", `for ${plural(run.interrupts, "answer", "answers")}`, run.waiting_for, span];
    const why = REASONS[run.reason] ?? run.reason ?? run.outcome ?? "";
    if (run.how === "dead") return ["failed", why, run.changed_ago, ago];
    return ["stuck", why, run.next_attempt_at ? retryOf(run) : "", null];
  });
  put($("waiting-count"), rows.length ? `${number(now.retrying)} retrying, ${number(now.waiting)} waiting, ${number(now.dead)}${now.dead === 1000 ? "+" : ""} dead in 24 h` : "");
  $("dead-all").hidden = now.dead <= dead.length;
  $("waiting-empty").hidden = rows.length > 0;
  put($("waiting-empty"), "No run waits for its next attempt or for an answer. No run failed for good in the last 24 hours.");
}
