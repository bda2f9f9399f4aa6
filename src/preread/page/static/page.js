// What both pages do: they show what the server says has changed, and send the key where it wants one.
// The HTML that is put in comes from this server's own templates, which escape all names; nothing else is put in as HTML.

const KEY = "preread-key";
const element = (id) => document.getElementById(id);

export function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** The data of each server-sent event of a response. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

/** What a refusal says, in words. */
export async function problem(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/** Ask for a key; `why`: what was wrong with the last one, if anything was. */
export function askForKey(why = "") {
  element("key").hidden = false;
  element("key-error").textContent = why;
}

/** What gives the focus back to where it is within a place, once that has been put in anew; null: it is elsewhere. */
function focusIn(place) {
  const stops = () => [...place.querySelectorAll("summary, [tabindex]")];
  const at = stops().indexOf(document.activeElement);
  if (at < 0) return null;
  const key = document.activeElement.parentElement.dataset.key;
  return () => (key ? place.querySelector(`details[data-key="${key}"] summary`) : stops()[at])?.focus();
}

function show(sections) {
  for (const [name, html] of Object.entries(sections)) {
    const place = document.querySelector(`[data-section="${name}"]`);
    if (!place) continue;
    const open = [...place.querySelectorAll("details[open]")].map((one) => one.dataset.key);
    const chosen = place.value;
    const focus = focusIn(place);
    place.innerHTML = html;
    focus?.();
    for (const one of place.querySelectorAll("details")) one.open = open.includes(one.dataset.key);
    if (chosen !== undefined) place.value = [...place.options].some((one) => one.value === chosen) ? chosen : "";
  }
}

function connected(is) {
  element("connection").hidden = is;
  element("connection").textContent = is ? "" : "The server does not answer. What you see may be old.";
}

let watching = null;

async function watch() {
  watching?.abort();
  if (document.hidden || (document.body.hasAttribute("data-locked") && !sessionStorage.getItem(KEY))) return;
  const mine = (watching = new AbortController());
  while (!mine.signal.aborted) {
    try {
      const response = await fetch("page/events", { headers: headers(), signal: mine.signal });
      if (response.status === 401 || response.status === 403) {
        sessionStorage.removeItem(KEY);
        askForKey(await problem(response));
        return;
      }
      if (response.ok) {
        element("key").hidden = true;
        connected(true);
        for await (const data of events(response)) show(JSON.parse(data));
      }
    } catch {
      // it went away, or this page did
    }
    if (mine.signal.aborted) return;
    connected(false);
    await new Promise((resume) => setTimeout(resume, 2000));
  }
}

element("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, element("key-field").value);
  element("key-field").value = "";
  watch();
});
document.addEventListener("visibilitychange", watch);
if (document.body.hasAttribute("data-locked") && !sessionStorage.getItem(KEY)) askForKey();
watch();
