// The server that this page came from: its models, its state, and streamed answers. What is shown is others' to know.

const KEY = "geode-key";

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";
export function setApiKey(text) {
  const key = text.replace(/[^!-~]/g, ""); // nothing else can stand in a header
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** The server said no; `status` is HTTP's, 0 where it could not be reached. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey()) headers.authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    // Relative to the page, so that a proxy may serve it under any path.
    response = await fetch(new URL(path, document.baseURI), { ...options, headers, credentials: "same-origin" });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Refusal(0, "The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw new Refusal(response.status, await reason(response));
  return response;
}

async function reason(response) {
  const text = await response.text();
  try {
    const body = JSON.parse(text);
    return body.error?.message ?? body.detail ?? text;
  } catch {
    return text.slice(0, 500) || `The server answered ${response.status} ${response.statusText}.`;
  }
}

export const get = async (path) => (await ask(path)).json();

async function post(path, body, signal) {
  return ask(path, { method: "POST", body: JSON.stringify(body), signal, headers: { "content-type": "application/json" } });
}

/** The `data:` lines of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {}); // the server frees the request as soon as nobody listens
  }
}

/** Streams one answer: {text, tokens, finish, usage}, each where there is one. */
export async function* chat(body, signal) {
  const response = await post("v1/chat/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(chunk.error.status ?? 500, chunk.error.message ?? "The server stopped answering.");
    yield partOf(chunk);
  }
  throw new Refusal(0, "The answer broke off: the server ended it in the middle.");
}

function partOf(chunk) {
  const choice = chunk.choices?.[0];
  return {
    text: choice?.delta?.content ?? "",
    tokens: (choice?.logprobs?.content ?? []).map(tokenOf),
    finish: choice?.finish_reason ?? null,
    usage: chunk.usage ?? null,
  };
}

const ENDS = new Set("<end_of_turn> <eos> </s> <|im_end|> <|endoftext|> <|end_of_text|> <|eot_id|> <|eom_id|> <|end|>".split(" "));

function tokenOf({ token: text, logprob, bytes, special, top_logprobs: top }) {
  const end = special === true || !text || ENDS.has(text);
  const token = { text, logprob, end, bytes: text.includes("\ufffd") ? bytes : null }; // a part of a character is kept as bytes
  return top ? { ...token, top: top.map(tokenOf) } : token;
}
