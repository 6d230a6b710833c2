// A conversation as a tree of messages: every edit and every new answer is another branch, and none is lost.
// Nothing about the screen or the server is known here.
import { newId } from "./dom.js";

const ROOT = "";

export const emptyTree = () => ({ nodes: {}, kids: {}, chosen: {} });

export function add(tree, parent, node) {
  const id = newId();
  tree.nodes[id] = { ...node, id, parent: parent ?? ROOT, created: node.created ?? Date.now() };
  (tree.kids[parent ?? ROOT] ??= []).push(id);
  tree.chosen[parent ?? ROOT] = id;
  return tree.nodes[id];
}

export const siblings = (tree, node) => tree.kids[node.parent] ?? [];

/** The messages that are shown: from the first along the chosen branches. */
export function path(tree) {
  const found = [];
  for (let id = tree.chosen[ROOT]; id; id = tree.chosen[id]) found.push(tree.nodes[id]);
  return found;
}

export const leaf = (tree) => path(tree).at(-1) ?? null;

export function choose(tree, node, step) {
  const all = siblings(tree, node);
  const next = all[all.indexOf(node.id) + step];
  if (next) tree.chosen[node.parent] = next;
  return next ? tree.nodes[next] : null;
}

export function before(tree, node) {
  const found = [];
  for (let at = tree.nodes[node.parent]; at; at = tree.nodes[at.parent]) found.unshift(at);
  return found;
}

/** What the server is sent: failed answers left out, and then never two messages of one role in a row. */
export function asMessages(nodes, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const { role, content } of nodes) {
    if (!content) continue;
    const last = messages.at(-1);
    if (last?.role === role) last.content += `\n\n${content}`;
    else messages.push({ role, content });
  }
  return messages;
}

export const copyTree = (tree) => structuredClone(tree);

export const isEmpty = (tree) => !tree.chosen[ROOT];

/** A tree from a file: only what is known and well-formed is taken over, under ids of our own. */
export function readTree(raw) {
  const tree = emptyTree();
  const nodes = new Map(Object.entries(raw?.nodes ?? {}));
  const kids = new Map(Object.entries(raw?.kids ?? {}));
  const chosen = new Map(Object.entries(raw?.chosen ?? {}));
  const waiting = [[ROOT, ROOT]];
  const seen = new Set();
  while (waiting.length) {
    const [old, own] = waiting.pop();
    for (const id of list(kids.get(old))) {
      if (seen.has(id) || !isMessage(nodes.get(id))) continue;
      seen.add(id);
      waiting.push([id, add(tree, own, readMessage(nodes.get(id))).id]);
      if (chosen.get(old) === id) chosen.set(old, { own: tree.kids[own].at(-1) });
    }
    if (chosen.get(old)?.own) tree.chosen[own] = chosen.get(old).own;
  }
  return tree;
}

const list = (value) => (Array.isArray(value) ? value : []);
const isMessage = (raw) => ["user", "assistant"].includes(raw?.role) && typeof raw.content === "string";
const text = (value) => (typeof value === "string" ? value : undefined);
const number = (value) => (Number.isFinite(value) ? value : undefined);

function readMessage(raw) {
  const figures = Object.entries(raw.figures ?? {}).filter(([, value]) => Number.isFinite(value));
  return {
    role: raw.role,
    content: raw.content,
    model: text(raw.model),
    finish: text(raw.finish),
    error: text(raw.error),
    created: number(raw.created),
    figures: raw.figures ? Object.fromEntries(figures) : undefined,
    branched: number(raw.branched),
    tokens: Array.isArray(raw.tokens) ? raw.tokens.filter(isToken).map(readToken) : undefined,
  };
}

const isToken = (raw) => typeof raw?.text === "string" && Number.isFinite(raw.logprob);
const isByte = (raw) => Number.isInteger(raw) && raw >= 0 && raw < 256;

function readToken({ text, logprob, end, bytes, top }) {
  const token = { text, logprob, end: end === true, bytes: Array.isArray(bytes) && bytes.every(isByte) ? bytes : null };
  return { ...token, top: list(top).filter(isToken).map((other) => ({ ...readToken({ ...other, top: [] }), top: undefined })) };
}
