// The document. Every text is inserted as text, never as HTML.
export const SVG = "http://www.w3.org/2000/svg";
export const $ = (id) => document.getElementById(id);

export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text != null) node.textContent = text;
  return node;
}

// A text that keeps counting between two responses.
const ticking = new Map();
export function live(node, seconds, words) {
  ticking.set(node, { seconds, words, at: performance.now() });
  put(node, words(seconds));
}
export function still(node, text) {
  ticking.delete(node);
  put(node, text);
}
export function tick() {
  for (const [node, { seconds, words, at }] of ticking) {
    if (node.isConnected) put(node, words(seconds + (performance.now() - at) / 1000));
    else ticking.delete(node);
  }
}

// Keeps one element per key, so that focus, selection and scroll position are preserved. `create` gets the first item.
export function list(parent, items, key, create, fill) {
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
  const focused = [...known.values()].some((node) => node.contains(document.activeElement));
  for (const node of known.values()) node.remove();
  // What had the focus is gone, such as a run that an action took off this list.
  if (focused) parent.closest("[tabindex='-1']")?.focus({ preventScroll: true });
}
