// One conversation: its title, settings and one or two lanes, each a model and a tree. Also to and from files.
import { newId } from "./dom.js";
import { asMessages, emptyTree, isEmpty, path, readTree } from "./tree.js";

const FORMAT = "geode-conversations";

export const newLane = (model) => ({ model, tree: emptyTree() });

export function newTalk(models, settings) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, settings: { ...settings }, lanes: models.map(newLane) };
}

export const isBlank = (talk) => talk.lanes.every((lane) => isEmpty(lane.tree));

export const shownTitle = (talk) => talk.title || "New conversation";

export function titleFrom(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 60).replace(/\s\S*$/, "")}…` : line;
}

/** Whether a conversation mentions `words`, in its title or in any branch. */
export function mentions(talk, words) {
  const wanted = words.toLocaleLowerCase();
  const texts = talk.lanes.flatMap((lane) => Object.values(lane.tree.nodes).map((node) => node.content));
  return [shownTitle(talk), ...texts].some((text) => text.toLocaleLowerCase().includes(wanted));
}

export function toMarkdown(talk) {
  const parts = [`# ${shownTitle(talk)}`];
  for (const lane of talk.lanes) {
    if (talk.lanes.length > 1) parts.push(`## ${lane.model}`);
    for (const { role, content } of asMessages(path(lane.tree), talk.settings.system ?? "")) {
      parts.push(`**${{ system: "System", user: "You", assistant: lane.model }[role]}**`, content);
    }
  }
  return `${parts.join("\n\n")}\n`;
}

export const toFile = (talks) => JSON.stringify({ format: FORMAT, version: 1, conversations: talks }, null, 1);

/** Conversations from a file that may have been made by anyone, under new ids. Throws where it is not one of ours. */
export function fromFile(text) {
  let raw;
  try {
    raw = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (raw?.format !== FORMAT || !Array.isArray(raw.conversations)) throw new Error("This file holds no Geode conversations.");
  if (raw.version !== 1) throw new Error("This file comes from a newer version of this page.");
  return raw.conversations.filter((talk) => Array.isArray(talk?.lanes) && talk.lanes.some(Boolean)).map(readTalk);
}

function readTalk(raw) {
  const lanes = raw.lanes.filter(Boolean).slice(0, 2).map(({ model, tree }) => ({ model: String(model ?? ""), tree: readTree(tree) }));
  const date = (value) => (Number.isFinite(value) ? value : Date.now());
  return {
    id: newId(),
    title: typeof raw.title === "string" ? raw.title.slice(0, 200) : "",
    created: date(raw.created),
    updated: date(raw.updated),
    settings: readSettings(raw.settings),
    lanes,
  };
}

function readSettings(raw) {
  const plain = Object.entries(raw ?? {}).filter(([, value]) => ["string", "number", "boolean"].includes(typeof value));
  return Object.fromEntries(plain);
}
