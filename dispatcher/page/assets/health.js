// Health, and the figures of now.
import { charts } from "./charts.js";
import { $, SVG, list, live, make, put, still } from "./dom.js";
import { duration, number, percent, plural, span } from "./words.js";

const root = document.documentElement;
const SEE = { policies: "See policies", backlog: "See pending by workflow" };

export function showHealth(health) {
  root.dataset.level = health.level;
  const problems = health.problems;
  const [first] = problems;
  const one = first && (first.text.includes(". ") ? first.text.slice(0, first.text.indexOf(". ")) : first.text.replace(/\.$/, ""));
  put($("level"), !first ? "All is well" : problems.length === 1 ? one : `${problems.length} problems`);
  live($("since"), health.for, (s) => (s < 1 ? "since just now" : `for ${span(s)}`));
  $("problems").hidden = !problems.length;
  list($("problems"), problems, (p) => p.name, () => {
    const item = make("li");
    const mend = make("span");
    mend.append(make("span"), " ", make("a"));
    item.append(make("b"), mend, make("code"));
    return item;
  }, (item, p) => {
    item.className = p.level;
    put(item.children[0], p.text);
    const [mend, see] = item.children[1].children;
    put(mend, p.mend);
    see.hidden = !p.see;
    see.href = `#${p.see ?? ""}`;
    put(see, SEE[p.see] ?? "");
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

export function showNow({ promise, now, hour }) {
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
