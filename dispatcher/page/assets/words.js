// Words and numbers, and the form in which texts of clients are shown.
const count = new Intl.NumberFormat("en");
export const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
export const second = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
export const exact = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
export const number = (value) => (value == null ? "–" : count.format(value));
export const plural = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;

export function duration(seconds) {
  if (seconds == null) return "–";
  const s = Math.max(0, seconds);
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  return span(s);
}

// Whole units, for durations that count up on the page.
export function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s < 600 && s % 60 ? ` ${s % 60} s` : ""}`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function ago(seconds) {
  if (seconds < 1) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

export const share = (part) => `${(part * 100).toFixed(part > 0 && part < 0.0995 ? 1 : 0)} %`;
export const percent = (part) => (part > 0 && part < 0.001 ? "< 0.1 %" : share(part));
export const short = (id) => (id.length > 13 ? id.slice(0, 8) : id);

// Clients choose names, labels and reasons. Characters that are invisible or change the direction of a line are shown as
// escapes. Every text of a response passes through here.
const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]|(?<=\p{M}{3})\p{M}/gu;
export const plain = (text) => text.replace(UNSEEN, (mark) => `\\u{${mark.codePointAt(0).toString(16).padStart(4, "0")}}`);
