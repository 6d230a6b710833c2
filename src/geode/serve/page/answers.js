// Answers while they are made: from the request to the last token of a message. How they look is not known here.
import { chat } from "./api.js";

const running = new Map(); // message id -> AbortController

export const isRunning = (id) => running.has(id);

export function stop(id) {
  running.get(id)?.abort();
}

export function stopAll() {
  for (const control of running.values()) control.abort();
}

/** Fills `node`, an assistant's message, with what the server answers; `tell(node)` follows every change.
 *  Resolves when it is over, however it ended: that is written on the message. */
export async function answer(node, body, tell) {
  const control = new AbortController();
  const clock = { start: performance.now(), first: null, parts: 0 };
  running.set(node.id, control);
  delete node.error;
  delete node.finish;
  tell(node);
  try {
    for await (const part of chat(body, control.signal)) {
      take(node, part, clock);
      tell(node);
    }
  } catch (problem) {
    if (control.signal.aborted) node.finish = "stopped";
    else Object.assign(node, { finish: "error", error: problem.message, status: problem.status });
  }
  running.delete(node.id);
  tell(node);
}

function take(node, { text, tokens, finish, usage }, clock) {
  if (text || tokens.length) {
    clock.first ??= performance.now();
    clock.parts += tokens.length || 1;
    node.content += text;
    if (tokens.length) (node.tokens ??= []).push(...tokens);
  }
  if (finish) node.finish = finish;
  node.figures = figures(clock, usage);
}

/** The server's own count and seconds once they are there, this page's until then. */
function figures(clock, usage) {
  const now = performance.now();
  const made = usage?.completion_tokens ?? clock.parts;
  const seconds = usage?.completion_seconds || (now - (clock.first ?? now)) / 1000;
  return {
    prompt: usage?.prompt_tokens ?? 0,
    cached: usage?.prompt_tokens_details?.cached_tokens ?? 0,
    truncated: usage?.truncated_tokens ?? 0,
    made,
    first: ((clock.first ?? now) - clock.start) / 1000,
    speed: made > 1 && seconds > 0 ? made / seconds : 0,
  };
}

/** "31 tokens · 42 tokens/s · first after 0.2 s · 12 read, 8 of them kept from before". */
export function figuresText({ prompt, cached, truncated, made, first, speed }) {
  const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
  const parts = [count(made, "token")];
  if (speed) parts.push(`${speed < 10 ? speed.toFixed(1) : Math.round(speed)} tokens/s`);
  if (made) parts.push(`first after ${first.toFixed(2)} s`);
  if (prompt) parts.push(`${count(prompt, "token")} read${cached ? `, ${cached.toLocaleString("en")} from memory` : ""}`);
  if (truncated) parts.push(`${count(truncated, "token")} of the prompt left out`);
  return parts.join(" · ");
}
