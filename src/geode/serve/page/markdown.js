// Markdown to elements. What it does not know stays text; links lead to http and https only, pictures are not loaded.
import { el } from "./dom.js";
import { codeBlock } from "./code.js";

const DEEPEST = 12;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:(\s+)(.*))?$/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Shows a growing text in `place`: only the blocks that changed are made anew. */
export class Markdown {
  constructor(place) {
    this.place = place;
    this.shown = [];
  }

  update(text, live = false) {
    const parts = blocks(text.split("\n"));
    parts.forEach((block, i) => this.put(i, block, live && i === parts.length - 1));
    for (const { node } of this.shown.splice(parts.length)) node.remove();
  }

  put(i, block, live) {
    const old = this.shown[i];
    if (old && old.key === block.key && !old.live && !live) return;
    if (old && old.type === "code" && block.type === "code" && old.info === block.info) {
      old.node.update(block.text);
      Object.assign(old, block, { live });
      return;
    }
    const node = render(block, live, 0);
    if (old) old.node.replaceWith(node);
    else this.place.append(node);
    this.shown[i] = { ...block, node, live };
  }
}

/** Splits lines into blocks {type, key, ...}; `key` is equal where the block would look the same. */
function blocks(lines) {
  const found = [];
  for (let i = 0; i < lines.length; ) {
    if (!lines[i].trim()) {
      i++;
      continue;
    }
    const [block, next] = blockAt(lines, i);
    found.push({ ...block, key: `${block.type}\n${lines.slice(i, next).join("\n")}` });
    i = next;
  }
  return found;
}

function blockAt(lines, i) {
  const line = lines[i];
  if (FENCE.test(line)) return fence(lines, i);
  const heading = HEADING.exec(line);
  if (heading) return [{ type: "heading", level: heading[1].length, text: heading[2] ?? "" }, i + 1];
  if (RULE.test(line)) return [{ type: "rule" }, i + 1];
  if (QUOTE.test(line)) return quote(lines, i);
  if (ITEM.test(line)) return items(lines, i);
  if (isTable(lines, i)) return table(lines, i);
  return paragraph(lines, i);
}

function fence(lines, i) {
  const [, marks, info] = FENCE.exec(lines[i]);
  const indent = /^ */.exec(lines[i])[0].length;
  const closes = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}\\s*$`);
  let end = i + 1;
  while (end < lines.length && !closes.test(lines[end])) end++;
  const text = lines.slice(i + 1, end).map((line) => line.replace(new RegExp(`^ {0,${indent}}`), ""));
  return [{ type: "code", info: info.trim().split(/\s+/)[0], text: text.join("\n") }, Math.min(end + 1, lines.length)];
}

function quote(lines, i) {
  let end = i;
  while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !startsBlock(lines, end))) end++;
  return [{ type: "quote", lines: lines.slice(i, end).map((line) => line.replace(QUOTE, "")) }, end];
}

const startsBlock = (lines, i) =>
  [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(lines[i])) || isTable(lines, i);

function items(lines, start) {
  const [, indent, marker] = ITEM.exec(lines[start]);
  const ordered = /\d/.test(marker);
  const block = { type: "list", ordered, first: ordered ? parseInt(marker, 10) : 1, items: [], loose: false };
  let i = start;
  while (i < lines.length && isItem(lines[i], indent.length, ordered)) {
    const [item, next] = itemAt(lines, i);
    block.loose ||= item.some((line, at) => !line.trim() && at < item.length - 1);
    block.items.push(item);
    i = next;
    const after = skipBlank(lines, i);
    if (after < lines.length && after > i && isItem(lines[after], indent.length, ordered)) {
      block.loose = true;
      i = after;
    }
  }
  return [block, i];
}

function isItem(line, indent, ordered) {
  const match = ITEM.exec(line);
  return match && !RULE.test(line) && /\d/.test(match[2]) === ordered && Math.abs(match[1].length - indent) < 2;
}

/** One item's lines without its marker and indentation. */
function itemAt(lines, i) {
  const [, indent, marker, gap = " ", rest = ""] = ITEM.exec(lines[i]);
  const width = indent.length + marker.length + Math.min(gap.length, 4);
  const least = indent.length + 2;
  const item = [rest];
  let end = i + 1;
  for (; end < lines.length; end++) {
    const line = lines[end];
    const depth = /^\s*/.exec(line)[0].length;
    if (!line.trim()) {
      const after = skipBlank(lines, end);
      if (after === lines.length || /^\s*/.exec(lines[after])[0].length < least) break;
    } else if (depth < least && (!lines[end - 1].trim() || startsBlock(lines, end))) break;
    item.push(line.slice(Math.min(depth, width)));
  }
  return [item, end];
}

function skipBlank(lines, i) {
  while (i < lines.length && !lines[i].trim()) i++;
  return i;
}

const isTable = (lines, i) =>
  lines[i].includes("|") && i + 1 < lines.length && lines[i + 1].includes("-") && DIVIDER.test(lines[i + 1]) &&
  cells(lines[i]).length === cells(lines[i + 1]).length;

function table(lines, i) {
  const aligned = cells(lines[i + 1]).map((cell) => (/^:-+:$/.test(cell) ? "center" : /-:$/.test(cell) ? "right" : "left"));
  let end = i + 2;
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end++;
  return [{ type: "table", head: cells(lines[i]), aligned, rows: lines.slice(i + 2, end).map(cells) }, end];
}

function cells(line) {
  const found = [""];
  const inner = line.trim().replace(/^\|/, "").replace(/([^\\])\|$/, "$1");
  for (let i = 0, code = false; i < inner.length; i++) {
    if (inner[i] === "`") code = !code;
    if (inner[i] === "\\" && inner[i + 1] === "|") found[found.length - 1] += inner[++i];
    else if (inner[i] === "|" && !code) found.push("");
    else found[found.length - 1] += inner[i];
  }
  return found.map((cell) => cell.trim());
}

function paragraph(lines, i) {
  let end = i + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end)) end++;
  return [{ type: "paragraph", text: lines.slice(i, end).join("\n") }, end];
}

function render(block, live, depth) {
  if (depth > DEEPEST) return el("p", {}, block.key.replace(/^\w+\n/, ""));
  return RENDER[block.type](block, live, depth);
}

const inside = (lines, live, depth) => {
  const parts = blocks(lines);
  return parts.map((part, i) => render(part, live && i === parts.length - 1, depth + 1));
};

const RENDER = {
  heading: ({ level, text }, live) => el(`h${Math.min(level + 2, 6)}`, { class: `h${level}` }, inline(text, live)),
  rule: () => el("hr"),
  code: ({ info, text }) => codeBlock(info, text),
  quote: ({ lines }, live, depth) => el("blockquote", {}, inside(lines, live, depth)),
  paragraph: ({ text }, live) => el("p", {}, inline(text, live)),
  list: (block, live, depth) => {
    const shown = block.items.map((item, i) => listItem(item, block.loose, live && i === block.items.length - 1, depth));
    return block.ordered ? el("ol", { start: block.first === 1 ? null : String(block.first) }, shown) : el("ul", {}, shown);
  },
  table: ({ head, aligned, rows }, live) => {
    const line = (tag, row) => el("tr", {}, aligned.map((side, i) => el(tag, { class: side }, inline(row[i] ?? "", live))));
    const body = el("table", {}, el("thead", {}, line("th", head)), el("tbody", {}, rows.map((row) => line("td", row))));
    return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, body);
  },
};

function listItem(lines, loose, live, depth) {
  const task = /^\[([ xX])\]\s+/.exec(lines[0]);
  const own = task ? [lines[0].slice(task[0].length), ...lines.slice(1)] : lines;
  const parts = inside(own, live, depth);
  const flat = loose ? parts : parts.flatMap((part) => (part.tagName === "P" ? [...part.childNodes] : [part]));
  const mark = task && el("span", { class: "task", role: "img", "aria-label": task[1] === " " ? "to do: " : "done: " }, task[1] === " " ? "☐ " : "☑ ");
  return el("li", { class: task ? "has-task" : null }, mark, flat);
}

const PAIRS = [["***", "strong", "em"], ["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];
const MATH = [["\\(", "\\)"], ["\\[", "\\]"], ["$$", "$$"], ["$", "$"]];
const WORD = /[\p{L}\p{N}]/u;
const SPECIAL = /[\\`*_~[!<$\n]|https?:\/\//g;

/** Text with emphasis, code and links, as nodes. `live`: more will come, so an open mark counts as closed. */
export function inline(text, live = false, depth = 0) {
  const out = [];
  const scan = { text, live, depth, none: new Set() };
  let plain = "";
  for (let i = 0; i < text.length; ) {
    const next = nextSpecial(text, i);
    plain += text.slice(i, next);
    if (next === text.length) break;
    const [node, end] = markAt(scan, next) ?? [text[next], next + 1];
    if (typeof node === "string") plain += node;
    else {
      if (plain) out.push(plain);
      out.push(node);
      plain = "";
    }
    i = end;
  }
  return plain ? [...out, plain] : out;
}

function nextSpecial(text, i) {
  SPECIAL.lastIndex = i;
  return SPECIAL.exec(text)?.index ?? text.length;
}

function markAt(scan, i) {
  const { text } = scan;
  const sign = text[i];
  if (sign === "\n") return [el("br"), i + 1];
  if (sign === "\\" || sign === "$") return math(scan, i) ?? escaped(text, i);
  if (sign === "`") return codeSpan(scan, i);
  if (scan.depth > DEEPEST) return null;
  if (sign === "[") return link(scan, i);
  if (sign === "!" && text[i + 1] === "[") return link(scan, i + 1);
  if (sign === "<" || sign === "h") return bareLink(text, i);
  return "*_~".includes(sign) ? emphasis(scan, i) : null;
}

function escaped(text, i) {
  if (text[i] !== "\\") return null;
  if (text[i + 1] === "\n") return [el("br"), i + 2];
  return /[!-/:-@[-`{-~]/.test(text[i + 1] ?? "") ? [text[i + 1], i + 2] : null;
}

/** Formulas stay as they were written, and nothing in them is taken for Markdown. */
function math(scan, i) {
  const pair = MATH.find(([open]) => scan.text.startsWith(open, i));
  if (!pair || scan.none.has(pair[0])) return null;
  const [open, close] = pair;
  const end = scan.text.indexOf(close, i + open.length);
  if (end < 0) return scan.none.add(open) && null;
  const body = scan.text.slice(i, end + close.length);
  const money = open === "$" && (/^\$\s|\s\$$|\n/.test(body) || body.length < 3 || /\d/.test(scan.text[end + 1] ?? ""));
  return money ? null : [el("span", { class: "math" }, body), end + close.length];
}

function codeSpan(scan, i) {
  const marks = /^`+/.exec(scan.text.slice(i, i + 64))[0];
  if (scan.none.has(marks)) return [marks, i + marks.length];
  const from = i + marks.length;
  const close = new RegExp(`(?<!\`)${marks}(?!\`)`, "g");
  close.lastIndex = from;
  const end = close.exec(scan.text)?.index ?? (scan.live && marks.length === 1 ? scan.text.length : -1);
  if (end < 0) return scan.none.add(marks) && [marks, from];
  const body = scan.text.slice(from, end).replaceAll("\n", " ");
  return [el("code", {}, /^ .*[^ ].* $/.test(body) ? body.slice(1, -1) : body), end + marks.length];
}

function emphasis(scan, i) {
  for (const [mark, ...tags] of PAIRS) {
    if (!scan.text.startsWith(mark, i) || scan.none.has(mark) || !opens(scan.text, i, mark)) continue;
    const end = closer(scan, i + mark.length, mark);
    if (end < 0) {
      scan.none.add(mark);
      continue;
    }
    const body = inline(scan.text.slice(i + mark.length, end), scan.live, scan.depth + 1);
    const node = tags.reduceRight((children, tag) => [el(tag, {}, children)], body)[0];
    return [node, end + mark.length];
  }
  const run = /^[*_~]+/.exec(scan.text.slice(i, i + 64))[0];
  return [run, i + run.length];
}

function opens(text, i, mark) {
  const after = text[i + mark.length] ?? " ";
  return !/\s/.test(after) && (mark[0] !== "_" || !WORD.test(text[i - 1] ?? " "));
}

function closer({ text, live }, from, mark) {
  for (let i = from; i < text.length; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "`") i = skipCode(text, i);
    else if (text.startsWith(mark, i) && i > from && closes(text, i, mark)) return i;
    else if (text[i] === mark[0]) while (text[i + 1] === mark[0]) i++;
  }
  return live && mark === "**" && from < text.length ? text.length : -1;
}

function closes(text, i, mark) {
  if (/\s/.test(text[i - 1])) return false;
  if (mark[0] === "_" && WORD.test(text[i + mark.length] ?? " ")) return false;
  return mark.length > 1 || (text[i + 1] !== mark && text[i - 1] !== mark) || text.startsWith(mark.repeat(3), i);
}

function skipCode(text, i) {
  const end = text.indexOf("`", i + 1);
  return end < 0 ? i : end;
}

function link(scan, i) {
  const label = closing(scan.text, i, "[", "]");
  if (label < 0 || scan.text[label + 1] !== "(") return null;
  const end = closing(scan.text, label + 1, "(", ")");
  if (end < 0) return null;
  const url = scan.text.slice(label + 2, end).trim().replace(/\s+["'(].*$/, "").replace(/^<(.*)>$/, "$1");
  const shown = inline(scan.text.slice(i + 1, label), false, scan.depth + 4);
  return [anchor(url, shown) ?? el("span", {}, shown), end + 1];
}

function closing(text, i, open, close) {
  const last = Math.min(text.length, i + 4000);
  for (let depth = 0, at = i; at < last; at++) {
    if (text[at] === "\\") at++;
    else if (text[at] === open) depth++;
    else if (text[at] === close && --depth === 0) return at;
  }
  return -1;
}

function bareLink(text, i) {
  const wrapped = /^<(https?:\/\/[^\s<>]+)>/i.exec(text.slice(i, i + 2000));
  if (wrapped) return [anchor(wrapped[1], [wrapped[1]]) ?? wrapped[0], i + wrapped[0].length];
  const bare = /^https?:\/\/[^\s<>"'`*]+/.exec(text.slice(i, i + 2000))?.[0].replace(/[.,:;!?\])}]+$/, "");
  const made = bare && anchor(bare, [bare]);
  return made ? [made, i + bare.length] : null;
}

function anchor(url, shown) {
  if (!/^https?:\/\//i.test(url) || !URL.canParse(url)) return null;
  return el("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, shown);
}
