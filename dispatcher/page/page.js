"use strict";
// Polls overview.json and shows it. Every text is inserted as text, never as HTML.
(() => {
  const EVERY = 3000, SOON = 500, SLOWEST = 15000, PATIENCE = 8000, OLD_SECONDS = 20;
  const SVG = "http://www.w3.org/2000/svg";
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  const filters = $("filters");

  // --- Words and numbers ---
  const count = new Intl.NumberFormat("en");
  const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
  const second = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
  const exact = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
  const number = (value) => (value == null ? "–" : count.format(value));
  const plural = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;

  function duration(seconds) {
    if (seconds == null) return "–";
    const s = Math.max(0, seconds);
    if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
    if (s < 9.95) return `${s.toFixed(1)} s`;
    return span(s);
  }

  // Whole units, for durations that count up on the page.
  function span(seconds) {
    const s = Math.max(0, Math.floor(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min${s < 600 && s % 60 ? ` ${s % 60} s` : ""}`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  }

  function ago(seconds) {
    if (seconds < 1) return "now";
    if (seconds < 60) return `${Math.floor(seconds)} s ago`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
    if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
    return `${Math.floor(seconds / 86400)} d ago`;
  }

  const share = (part) => `${(part * 100).toFixed(part > 0 && part < 0.0995 ? 1 : 0)} %`;
  const percent = (part) => (part > 0 && part < 0.001 ? "< 0.1 %" : share(part));
  const short = (id) => (id.length > 13 ? id.slice(0, 8) : id);

  // Clients choose names, labels and reasons. Characters that are invisible or change the direction of a line are shown as
  // escapes. Every text of a response passes through here.
  const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]|(?<=\p{M}{3})\p{M}/gu;
  const plain = (text) => text.replace(UNSEEN, (mark) => `\\u{${mark.codePointAt(0).toString(16).padStart(4, "0")}}`);

  // --- The document ---
  function put(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  function make(tag, name, text) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text != null) node.textContent = text;
    return node;
  }

  // A text that keeps counting between two responses.
  const ticking = new Map();
  function live(node, seconds, words) {
    ticking.set(node, { seconds, words, at: performance.now() });
    put(node, words(seconds));
  }
  function still(node, text) {
    ticking.delete(node);
    put(node, text);
  }
  function tick() {
    for (const [node, { seconds, words, at }] of ticking) {
      if (node.isConnected) put(node, words(seconds + (performance.now() - at) / 1000));
      else ticking.delete(node);
    }
    tellFreshness();
  }

  // Keeps one element per key, so that focus, selection and scroll position are preserved. `create` gets the first item.
  function list(parent, items, key, create, fill) {
    const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
    items.forEach((item, index) => {
      let node = known.get(key(item));
      if (!node) {
        node = create(item);
        node.dataset.key = key(item);
      }
      known.delete(key(item));
      if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
      fill(node, item);
    });
    for (const node of known.values()) node.remove();
  }

  // --- Charts: sixty stacked bars ---
  function chart(id, series, summary, format) {
    const figure = $(id), at = figure.querySelector("span"), legend = make("output", "legend");
    const plot = make("div", "plot"), label = make("span", "top-label"), nothing = make("span", "nothing");
    const svg = document.createElementNS(SVG, "svg");
    const shape = (tag, name) => {
      const node = document.createElementNS(SVG, tag);
      node.setAttribute("class", name);
      return svg.appendChild(node);
    };
    svg.setAttribute("viewBox", "0 0 600 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    shape("path", "grid").setAttribute("d", "M0 0H600M0 50H600M0 100H600");
    const guide = shape("rect", "guide");
    guide.setAttribute("width", "10");
    guide.setAttribute("height", "100");
    const paths = series.map((each) => shape("path", each.style));
    plot.append(svg, label, nothing);
    plot.tabIndex = 0;
    plot.setAttribute("role", "img");
    const axis = make("p", "axis");
    const from = make("span"), to = make("span", "", "now");
    axis.append(from, to);
    axis.setAttribute("aria-hidden", "true");
    const values = series.map((each) => {
      const entry = make("span"), value = make("b");
      entry.append(make("i", each.style), `${each.name} `, value);
      legend.append(entry);
      return value;
    });
    figure.append(plot, axis, legend);

    let minutes = [], whole = null, chosen = null;

    function draw() {
      const stacks = minutes.map((minute) => series.map((each) => each.value(minute)));
      const top = ceiling(Math.max(0, ...stacks.map((stack) => stack.reduce((sum, value) => sum + value, 0))), format);
      series.forEach((_, level) => {
        let d = "";
        stacks.forEach((stack, index) => {
          if (!(stack[level] > 0)) return;
          const below = stack.slice(0, level).reduce((sum, value) => sum + value, 0);
          const height = Math.max(1.5, (stack[level] / top) * 100), base = 100 - (below / top) * 100;
          d += `M${index * 10 + 1.5} ${base.toFixed(2)}v${(-height).toFixed(2)}h7v${height.toFixed(2)}z`;
        });
        paths[level].setAttribute("d", d);
      });
      const empty = stacks.every((stack) => stack.every((value) => !(value > 0)));
      put(label, empty ? "" : format(top));
      plot.classList.toggle("bare", empty);
      put(nothing, empty && minutes.length ? "No run ended in the last hour" : "");
      if (minutes.length) put(from, clock.format(new Date(minutes[0].minute)));
    }

    function read() {
      const minute = chosen == null ? null : minutes[chosen];
      plot.classList.toggle("read", minute != null);
      if (minute) guide.setAttribute("x", chosen * 10);
      put(at, minute ? clock.format(new Date(minute.minute)) : whole ? summary(whole) : "");
      series.forEach((each, index) => put(values[index], whole ? each.told(minute ?? whole) : "–"));
    }

    function choose(index) {
      chosen = index == null || !minutes.length ? null : Math.min(minutes.length - 1, Math.max(0, index));
      read();
    }

    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      choose(Math.floor(((event.clientX - box.left) / box.width) * 60));
    });
    plot.addEventListener("pointerleave", () => choose(null));
    plot.addEventListener("blur", () => choose(null));
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") choose(null);
      if (!step) return;
      event.preventDefault();
      choose(chosen == null ? (step < 0 ? 59 : 0) : chosen + step);
    });

    return (hour) => {
      whole = hour;
      minutes = hour ? hour.minutes : [];
      draw();
      read();
      plot.setAttribute("aria-label", whole ? `The last hour: ${series.map((each) => `${each.name} ${each.told(whole)}`).join(", ")}. Use the arrow keys to read single minutes.` : "");
    };
  }

  function ceiling(value, format) {
    if (value <= 0) return 1;
    if (format !== duration) {
      const power = 10 ** Math.floor(Math.log10(value));
      return [1, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value);
    }
    const steps = [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 1.5, 2, 3, 5, 8, 10, 15, 20, 30, 60, 90, 120, 180, 300, 600, 900, 1200, 1800, 3600];
    return steps.find((step) => step >= value) ?? Math.ceil(value / 3600) * 3600;
  }

  const counted = (name, style) => ({ name, style, value: (m) => m[name], told: (m) => number(m[name]) });
  const timed = (name) => [
    { name: "p50", style: "s-mid", value: (m) => m[`${name}_p50`] ?? 0, told: (m) => duration(m[`${name}_p50`]) },
    {
      name: "p95", style: "s-far", told: (m) => duration(m[`${name}_p95`]),
      value: (m) => (m[`${name}_p95`] ?? 0) - (m[`${name}_p50`] ?? 0),
    },
  ];
  const lastHour = () => "last hour";
  const charts = [
    chart("chart-ended", [counted("succeeded", "s-good"), counted("cancelled", "s-idle"), counted("failed", "s-bad")], lastHour, (top) => `${number(top)} per minute`),
    chart("chart-wait", timed("wait"), lastHour, duration),
    chart("chart-ran", timed("ran"), lastHour, duration),
  ];

  // --- Health ---

  function showHealth(health) {
    root.dataset.level = health.level;
    const problems = health.problems;
    const [first] = problems;
    const one = first && (first.text.includes(". ") ? first.text.slice(0, first.text.indexOf(". ")) : first.text.replace(/\.$/, ""));
    put($("level"), !first ? "All is well" : problems.length === 1 ? one : `${problems.length} problems`);
    live($("since"), health.for, (s) => (s < 1 ? "since just now" : `for ${span(s)}`));
    $("problems").hidden = !problems.length;
    list($("problems"), problems, (p) => p.name, () => {
      const item = make("li");
      item.append(make("b"), make("span"), make("code"));
      return item;
    }, (item, p) => {
      item.className = p.level;
      put(item.children[0], p.text);
      put(item.children[1], p.mend);
      put(item.children[2], p.command);
    });
    document.title = health.level === "healthy" ? "OK · orcheo-dispatch" : `Problems: ${problems.length} · orcheo-dispatch`;
    icon(getComputedStyle(root).getPropertyValue("--tone").trim());
    showStrip(health.changes);
  }

  function icon(colour) {
    const svg = `<svg xmlns="${SVG}" viewBox="0 0 16 16"><circle cx="8" cy="8" r="6" fill="${colour}"/></svg>`;
    const href = `data:image/svg+xml,${encodeURIComponent(svg)}`;
    const link = document.querySelector("link[rel=icon]");
    if (link.href !== href) link.href = href;
  }

  function showStrip(changes) {
    const HOUR = 3600, strip = $("strip");
    const parts = changes.filter((c) => c.ago - c.for < HOUR);
    list(strip, parts, (c) => String(changes.length - changes.indexOf(c)), () => make("span"), (part, c) => {
      const start = Math.min(c.ago, HOUR), end = Math.max(0, c.ago - c.for);
      part.className = c.level;
      part.style.left = `${(1 - start / HOUR) * 100}%`;
      part.style.width = `${((start - end) / HOUR) * 100}%`;
      part.title = `${c.level} for ${span(c.for)}${c.problems.length ? `: ${c.problems.join(", ")}` : ""}`;
    });
    const bad = parts.filter((c) => c.level !== "healthy").length;
    strip.setAttribute("aria-label", `Health over the last hour: ${bad ? plural(bad, "period not healthy", "periods not healthy") : "healthy since this dispatcher started"}`);
  }

  // --- Now ---
  function showNow({ promise, now, hour }) {
    const tile = $("tile-late");
    tile.classList.toggle("good", promise?.late === 0);
    tile.classList.toggle("bad", promise?.late > 0);
    put($("late"), promise ? percent(promise.late_share) : "–");
    put($("late-note"), promise ? (promise.late ? `${plural(promise.late, "run", "runs")}, promised 0 %` : "as promised") : " ");
    put($("pending"), number(now?.pending));
    if (promise?.oldest != null) live($("pending-note"), promise.oldest, (s) => `oldest ${duration(s)}`);
    else still($("pending-note"), now ? "none waiting" : " ");
    put($("queued"), number(now?.queued));
    put($("running"), number(now?.running));
    put($("running-note"), now ? (now.capacity ? `of ${number(now.capacity)} at a time` : "no worker is alive") : " ");
    $("running-meter").style.width = `${now?.capacity ? Math.min(100, (now.running / now.capacity) * 100) : 0}%`;
    const ended = hour && hour.succeeded + hour.failed + hour.cancelled;
    put($("ended"), number(ended) + (hour && !hour.complete ? "+" : ""));
    put($("ended-note"), hour ? (ended ? `${number(hour.failed)} failed, ${number(hour.lost)} lost` : "no run ended") : " ");
    charts.forEach((draw) => draw(hour));
  }

  // --- Runs ---
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

  // --- One run: opened in the list where it was asked for, and read again with each refresh ---
  let opened = null, told = null;
  const isOpen = (place, run) => opened?.place === place && opened.run_id === run.run_id;

  function opener() {
    const button = make("button", "open");
    button.type = "button";
    button.addEventListener("click", () => {
      const { place, run } = button.dataset;
      opened = isOpen(place, { run_id: run }) ? null : { place, run_id: run };
      told = null;
      if (seenLast) showLists(seenLast);
      askRun();
    });
    return button;
  }

  function fillOpener(button, place, run, name) {
    button.dataset.place = place;
    button.dataset.run = run.run_id;
    button.setAttribute("aria-expanded", String(isOpen(place, run)));
    button.setAttribute("aria-label", `${name}, events of run ${run.run_id}`);
  }

  async function askRun() {
    const which = opened;
    if (!which) return;
    let found = null;
    try {
      const answer = await fetch(`run.json?${new URLSearchParams({ id: which.run_id })}`, { signal: AbortSignal.timeout(PATIENCE), credentials: "same-origin", cache: "no-store" });
      found = parsed(await answer.text());
    } catch { /* No response, or none that is JSON: what was shown stays. */ }
    if (which !== opened || !found) return;
    told = found;
    document.querySelectorAll(".story:not([hidden])").forEach(fillStory);
  }

  const EVENTS = { __proto__: null, run_requeued: "requeued", run_retried: "pending again", run_waiting: "waits", run_answered: "answered", run_started: "begun", run_failed: "failed", run_cancelled: "cancelled" };

  function makeStory() {
    const story = make("div", "story");
    story.append(make("p"), make("ol"), make("p", "muted"));
    return story;
  }

  function fillStory(story) {
    const [state, events, note] = story.children;
    if (!told || told.error) {
      still(state, told ? told.error : "Loading");
      list(events, [], String);
      put(note, "");
      return;
    }
    if (told.interrupts) {
      const answers = plural(told.interrupts, "answer", "answers"), since = exact.format(new Date(told.waiting_since));
      live(state, told.waiting_for + told.ago, (s) => `Waiting for ${answers} for ${span(s)}, since ${since}.`);
    } else if (told.next_attempt_at) still(state, `Failed. Next attempt at ${exact.format(new Date(told.next_attempt_at))} (retry ${told.retries}).`);
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

  function showRuns(runs) {
    const rows = runs.rows;
    // Not read yet: the previous rows stay, dimmed, until it is.
    if (!rows) return;
    $("runs-table").removeAttribute("aria-busy");
    const items = rows.flatMap((run) => (isOpen("runs", run) ? [run, { run_id: run.run_id, story: true }] : [run]));
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
      row.children[0].append(opener());
      row.children[0].firstChild.append(status);
      return row;
    }, (row, run) => {
      if (run.story) return fillStory(row.querySelector(".story"));
      const [status, workflow, id, by, waited, ran, when] = row.children;
      const [style, word, note] = stateOf(run), button = status.firstChild, shown = button.firstChild;
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
      all.addEventListener("click", () => { filters.reset(); choose(); filters.elements.status[0].focus(); });
      $("runs-empty").append(all);
    }
  }

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

  // --- Stuck and lost, processes ---
  function entry(extra) {
    const item = make("li");
    item.append(make("b"), make("span", "end"), make("span", "note"), make("span", "note end"), ...extra());
    return item;
  }

  // Runs of the side lists. `describe` returns the colour of a run's state, a note, and seconds with the words for them, or a text.
  function showSide(id, rows, describe) {
    list($(id), rows, (run) => `${run.how} ${run.run_id}`, () => {
      const item = entry(() => [make("code"), makeStory()]);
      item.firstChild.append(opener());
      return item;
    }, (item, run) => {
      const [name, status, note, when, code, story] = item.children, place = `${run.how} of ${id}`;
      const workflow = run.workflow ?? short(run.workflow_id), [style, text, seconds, words] = describe(run);
      put(name.firstChild, workflow);
      fillOpener(name.firstChild, place, run, workflow);
      name.title = run.workflow_id;
      status.className = `end status ${style}`;
      put(status, run.how);
      put(note, text);
      note.title = text;
      if (words) live(when, seconds, words);
      else still(when, seconds);
      put(code, run.run_id);
      story.hidden = !isOpen(place, run);
      if (!story.hidden) fillStory(story);
    });
  }

  const of = (how, runs) => runs.map((run) => ({ ...run, how }));

  function showStuck({ stuck, lost, now }) {
    if (!stuck) return;
    const rows = [...of("stuck", stuck), ...of("lost", lost)];
    showSide("stuck-rows", rows, (run) => (run.how === "stuck"
      ? ["stuck", `attempt ${run.attempts}, no heartbeat`, run.silent_for, span]
      : ["failed", `attempt ${run.attempts}, settled as failed`, run.changed_ago, ago]));
    put($("stuck-count"), rows.length ? `${number(now.stuck)} stuck, ${number(lost.length)}${lost.length === 10 ? "+" : ""} lost in 24 h` : "");
    $("stuck-empty").hidden = rows.length > 0;
    put($("stuck-empty"), "No run is stuck. No run was lost in the last 24 hours.");
  }

  function showWaiting({ retrying, waiting, dead, now }) {
    $("waiting").hidden = !retrying;
    if (!retrying) return;
    const rows = [...of("retrying", retrying), ...of("waiting", waiting), ...of("dead", dead)];
    showSide("waiting-rows", rows, (run) => {
      if (run.how === "waiting") return ["pending", `for ${plural(run.interrupts, "answer", "answers")}`, run.waiting_for, span];
      const why = REASONS[run.reason] ?? run.reason ?? run.outcome ?? "";
      if (run.how === "dead") return ["failed", why, run.changed_ago, ago];
      return ["stuck", why, run.next_attempt_at ? retryOf(run) : "", null];
    });
    put($("waiting-count"), rows.length ? `${number(now.retrying)} retrying, ${number(now.waiting)} waiting, ${number(now.dead)}${now.dead === 1000 ? "+" : ""} dead in 24 h` : "");
    $("waiting-empty").hidden = rows.length > 0;
    put($("waiting-empty"), "No run waits for its next attempt or for an answer. No run failed for good in the last 24 hours.");
  }

  function showIsolated({ isolated, now }) {
    if (!isolated) return;
    $("isolated").hidden = !isolated.length;
    list($("isolated-rows"), isolated, (w) => `${w.workflow_id} ${w.workflow_version_id ?? ""}`, () => entry(() => [make("code")]), (item, w) => {
      const [name, until, reason, by, version] = item.children;
      put(name, w.workflow ?? short(w.workflow_id));
      name.title = w.workflow_id;
      put(until, w.until == null ? "until cleared" : `until ${exact.format(new Date(w.until))}`);
      put(reason, w.reason);
      reason.title = w.reason;
      put(by, w.times ? `by ${w.by}, ${number(w.times)}×` : `by ${w.by}`);
      put(version, w.workflow_version_id ?? "all versions");
    });
    put($("isolated-count"), now.isolated > isolated.length ? `${number(isolated.length)} of ${number(now.isolated)}` : number(isolated.length));
  }

  function showProcesses(processes) {
    if (!processes) return;
    list($("processes-rows"), processes, (p) => p.id, () => entry(() => {
      const meter = make("div", "meter");
      meter.append(make("span"));
      return [meter];
    }), (item, p) => {
      const [kind, load, host, up, meter] = item.children;
      item.className = p.alive ? "" : "gone";
      put(kind, p.kind);
      load.className = p.alive ? "end" : "end status missing";
      put(load, p.alive ? (p.kind === "worker" ? `${number(p.running)} of ${number(p.concurrency)}` : "alive") : "missing");
      put(host, `${p.host} · ${p.pid} · ${p.version}`);
      host.title = `${p.id}`;
      if (p.alive) live(up, p.up_for, (s) => `up ${span(s)}`);
      else live(up, p.seen_ago, (s) => `seen ${ago(s)}`);
      meter.hidden = !(p.alive && p.kind === "worker");
      meter.firstChild.style.width = `${Math.min(100, (p.running / Math.max(1, p.concurrency)) * 100)}%`;
    });
    const alive = processes.filter((p) => p.alive).length;
    put($("processes-count"), `${number(alive)} alive`);
    $("processes-empty").hidden = processes.length > 0;
    put($("processes-empty"), "No process was seen recently.");
  }

  function showAbout({ dispatcher }) {
    live($("about"), dispatcher.up_for, (s) => `Served by the dispatcher on ${dispatcher.host} (${dispatcher.pid}), ${dispatcher.version}, up ${span(s)}. This page is read-only.`);
    $("logout").hidden = !dispatcher.guarded;
  }

  // --- Asking ---
  const parsed = (text) => JSON.parse(text, (_, value) => (typeof value === "string" ? plain(value) : value));
  let asked = 0, seenLast = null, shownAt = null, figuresAgo = null, failures = 0, timer = null;

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
      const answer = await fetch(`overview.json${query()}`, { signal: AbortSignal.timeout(PATIENCE), credentials: "same-origin", cache: "no-store" });
      if (answer.status !== 401 && !answer.ok) throw new Error(String(answer.status));
      const seen = answer.ok ? parsed(await answer.text()) : null;
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
    showRuns(seen.runs);
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
    showLists(seen);
    showIsolated(seen);
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
      answer = await fetch("login", { headers: { Authorization: `Bearer ${$("token").value.trim()}` }, credentials: "same-origin" });
    } catch { /* A token that is not valid in a header, or no response: reported below. */ }
    put($("login-wrong"), answer?.ok ? "" : answer?.status === 401 ? "The token is wrong." : "No answer. Try again.");
    if (!answer?.ok) return;
    $("token").value = "";
    ask();
  });
  $("logout").addEventListener("click", async () => {
    await fetch("logout", { credentials: "same-origin" }).catch(() => null);
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
  setInterval(tick, 1000);
  ask();
})();
