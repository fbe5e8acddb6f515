// Entries of the side lists, and the processes.
import { $, list, live, make, put } from "./dom.js";
import { ago, number, span } from "./words.js";

export function entry(extra) {
  const item = make("li");
  item.append(make("b"), make("span", "end"), make("span", "note"), make("span", "note end"), ...extra());
  return item;
}

export function showProcesses(processes) {
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
