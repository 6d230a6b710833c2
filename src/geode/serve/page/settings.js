// The system prompt and how tokens are chosen: controls, and the fields of a request. An empty one is not sent at all.
import { el } from "./dom.js";

const NUMBERS = [
  { name: "temperature", label: "Temperature", hint: "0 takes the likeliest token; higher is freer", min: 0, max: 2, step: 0.05, base: 1 },
  { name: "top_p", label: "Top p", hint: "only the likeliest tokens that together reach p", min: 0.01, max: 1, step: 0.01, base: 1 },
  { name: "top_k", label: "Top k", hint: "only the k likeliest tokens; 0 is all", min: 0, max: 200, step: 1, base: 0 },
  { name: "min_p", label: "Min p", hint: "only tokens at least p times as likely as the likeliest", min: 0, max: 1, step: 0.01, base: 0 },
  { name: "repetition_penalty", label: "Repetition penalty", hint: "above 1 avoids what was said, prompt included", min: 0.5, max: 2, step: 0.01, base: 1 },
  { name: "presence_penalty", label: "Presence penalty", hint: "above 0 favours tokens not used yet", min: -2, max: 2, step: 0.05, base: 0 },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "above 0 avoids tokens the more they were used", min: -2, max: 2, step: 0.05, base: 0 },
];
const WHOLE = [
  { name: "max_completion_tokens", label: "Longest answer", hint: "tokens; empty is all that fit", min: 1 },
  { name: "seed", label: "Seed", hint: "the same seed gives the same answer; empty is a fresh one", min: 0 },
];
const SHAPES = { text: "Free text", json_object: "A JSON object", json_schema: "JSON by a schema" };

export class SettingError extends Error {}

/** The fields of a request that these settings mean. Throws SettingError where the schema is not JSON. */
export function requestOf(settings) {
  const body = {};
  for (const { name } of [...NUMBERS, ...WHOLE]) if (Number.isFinite(settings[name])) body[name] = settings[name];
  const stop = (settings.stop ?? "").split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
  if (stop.length) body.stop = stop;
  if (settings.shape === "json_object") body.response_format = { type: "json_object" };
  if (settings.shape === "json_schema") body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: schemaOf(settings) } };
  return body;
}

function schemaOf({ schema }) {
  try {
    return JSON.parse(schema);
  } catch {
    throw new SettingError("The JSON schema in the settings is not valid JSON.");
  }
}

/** How many settings are not the model's own. */
export const changed = (settings) => Object.entries(settings).filter(([name, value]) => value !== "" && !(name === "shape" && value === "text") && name !== "schema").length;

/** Fills `place` with controls for `settings`, which they change; `tell` is called after each change. */
export function showSettings(place, settings, tell) {
  const set = (name, value) => {
    if (value === "" || value === null || Number.isNaN(value)) delete settings[name];
    else settings[name] = value;
    tell();
  };
  place.replaceChildren(
    longText("system", "System prompt", "What the model should know and be, before the first message", settings, set, 5),
    ...NUMBERS.slice(0, 4).map((field) => numberField(field, settings, set)),
    ...WHOLE.map((field) => numberField(field, settings, set)),
    ...shapeField(settings, set),
    longText("stop", "Stop at", "one text a line; \\n is a line break", settings, set, 2),
    ...NUMBERS.slice(4).map((field) => numberField(field, settings, set)),
  );
}

function longText(name, label, hint, settings, set, rows) {
  const input = el("textarea", { id: `set-${name}`, rows: String(rows), value: settings[name] ?? "", placeholder: hint, spellcheck: "false", oninput: () => set(name, input.value) });
  return el("div", { class: "field" }, el("label", { for: input.id }, label), input);
}

function numberField({ name, label, hint, min, max, step = 1, base }, settings, set) {
  const id = `set-${name}`;
  const attributes = { min: String(min), max: max === undefined ? null : String(max), step: String(step) };
  const number = el("input", { type: "number", id, inputmode: "decimal", placeholder: base === undefined ? "none" : String(base), value: settings[name] ?? "", "aria-describedby": `${id}-hint`, ...attributes });
  const slide = base === undefined ? null : el("input", { type: "range", tabindex: "-1", "aria-hidden": "true", ...attributes, value: settings[name] ?? base });
  number.addEventListener("input", () => {
    if (!number.validity.valid) return;
    set(name, number.value === "" ? "" : number.valueAsNumber);
    if (slide) slide.value = number.value === "" ? base : number.value;
  });
  slide?.addEventListener("input", () => {
    number.value = slide.value;
    set(name, slide.valueAsNumber);
  });
  const head = el("div", { class: "field-head" }, el("label", { for: id }, label), number);
  return el("div", { class: "field" }, head, slide, el("p", { class: "hint", id: `${id}-hint` }, hint));
}

function shapeField(settings, set) {
  const schema = longText("schema", "Schema", '{"type": "object", …}', settings, set, 6);
  schema.hidden = settings.shape !== "json_schema";
  const options = Object.entries(SHAPES).map(([value, label]) => el("option", { value }, label));
  const select = el("select", { id: "set-shape" }, options);
  select.value = settings.shape ?? "text";
  select.addEventListener("change", () => {
    schema.hidden = select.value !== "json_schema";
    set("shape", select.value);
  });
  return [el("div", { class: "field field-head" }, el("label", { for: "set-shape" }, "The answer is"), select), schema];
}
