// Requests to the dispatcher. All addresses are relative, so that the page may be served below any path.
import { plain } from "./words.js";

const PATIENCE = 8000, PATIENCE_OF_ACTIONS = 30000;
const parsed = (text) => JSON.parse(text, (_, value) => (typeof value === "string" ? plain(value) : value));

export const get = (path, headers = {}) =>
  fetch(path, { headers, signal: AbortSignal.timeout(PATIENCE), credentials: "same-origin", cache: "no-store" });
export const read = async (answer) => parsed(await answer.text());

// Who may act, or why nobody may: `by`, `error`. The value that an action must show is not kept: it changes with the session.
async function session() {
  const answer = await get("session.json");
  return answer.json();
}
export const whoActs = async () => {
  try {
    const { by, error } = await session();
    return { by: by && plain(by), error: error && plain(error) };
  } catch {
    return { error: "No answer." };
  }
};

export async function post(action, body) {
  const { csrf, error } = await session();
  if (!csrf) return { error: plain(error) };
  const answer = await fetch(`actions/${action}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(PATIENCE_OF_ACTIONS),
    credentials: "same-origin",
  });
  return read(answer);
}
