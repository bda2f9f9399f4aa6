// The chat: it streams from the API as any client does. What was said is put in as text, never as HTML.

import { askForKey, events, headers, problem } from "./page.js";

const element = (id) => document.getElementById(id);
const [log, form, question, stop, send] = ["log", "ask", "question", "stop", "send"].map(element);
let messages = [];
let answering = null;

function said(who, name, text = "") {
  const block = document.createElement("div");
  block.className = `said ${name}`;
  const title = document.createElement("h3");
  title.textContent = who;
  const words = document.createElement("p");
  words.textContent = text;
  block.append(title, words);
  log.append(block);
  return block;
}

function down() {
  log.scrollTop = log.scrollHeight;
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`);

/** One line of an answer's timings. */
function line(timings) {
  const ways = {
    streamed: "context streamed",
    mixed: "context streamed and computed",
    resident: "context was here",
    computed: "context computed here",
    none: "no context",
  };
  const parts = [`first token after ${seconds(timings.ttft_ms)}`, ways[timings.way] ?? timings.way];
  if (timings.rung) parts.push(`rung ${timings.rung}`);
  if (timings.bytes_received) parts.push(`${(timings.bytes_received / 1000).toFixed(0)} kB`);
  parts.push(`${timings.predicted_n} tokens`);
  if (timings.predicted_per_second) parts.push(`${timings.predicted_per_second.toFixed(1)} tokens/s`);
  return parts.join(" · ");
}

async function answer(text) {
  const asked = [...messages, { role: "user", content: text }];
  const body = { messages: asked, stream: true };
  if (element("context").value) body.context = element("context").value;
  said("You", "question", text);
  const block = said("Answer", "answer");
  const words = block.querySelector("p");
  log.setAttribute("aria-busy", "true");
  down();
  answering = new AbortController();
  let whole = "";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json" }),
      body: JSON.stringify(body),
      signal: answering.signal,
    });
    if (response.status === 401) askForKey();
    if (!response.ok) throw new Error(await problem(response));
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      whole += event.choices[0]?.delta?.content ?? "";
      words.textContent = whole;
      if (event.timings) note(block, line(event.timings));
      down();
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      element("ask-error").textContent = error.message;
      if (!whole) block.remove();
    } else note(block, "stopped");
  } finally {
    if (whole) messages = [...asked, { role: "assistant", content: whole }];
    answering = null;
    log.setAttribute("aria-busy", "false");
    ready(true);
  }
}

function note(block, text) {
  const told = document.createElement("p");
  told.className = "quiet timings";
  told.textContent = text;
  block.append(told);
}

function ready(is) {
  send.disabled = !is;
  stop.disabled = is;
  element("clear").disabled = !is;
  form.setAttribute("aria-busy", String(!is));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || answering) return;
  question.value = "";
  element("ask-error").textContent = "";
  ready(false);
  answer(text);
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
stop.addEventListener("click", () => answering?.abort());
element("clear").addEventListener("click", () => {
  // The edge keeps a conversation for its next turn: there is none.
  fetch("v1/conversations", { method: "DELETE", headers: headers() }).catch(() => {});
  messages = [];
  log.replaceChildren();
  element("ask-error").textContent = "";
  question.focus();
});
