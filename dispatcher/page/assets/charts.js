// Charts of the last hour: sixty stacked bars, each one minute.
import { $, SVG, make, put } from "./dom.js";
import { clock, duration, number } from "./words.js";

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
export const charts = [
  chart("chart-ended", [counted("succeeded", "s-good"), counted("cancelled", "s-idle"), counted("failed", "s-bad")], lastHour, (top) => `${number(top)} per minute`),
  chart("chart-wait", timed("wait"), lastHour, duration),
  chart("chart-ran", timed("ran"), lastHour, duration),
];
