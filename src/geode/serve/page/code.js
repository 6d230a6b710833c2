// Blocks of code: a name, a copy button, quiet colours. It knows what most languages share, and no language's grammar.
import { copyButton, el } from "./dom.js";

const LONGEST = 60_000; // characters; more is shown without colours

const WORDS = {
  c: `abstract as async await auto bool boolean break case catch char class const constexpr continue crate def default defer
    delete do double else enum export extends extern final finally float fn for foreach from func function go goto if impl
    implements import in instanceof int interface internal is let long loop match mod module mut namespace new null nullptr
    nil of operator override package private protected pub public readonly record ref return self Self short signed sizeof
    static struct super switch template this throw throws trait try type typedef typeof union unsafe unsigned use using val
    var virtual void volatile when where while with yield true false undefined None NaN`,
  hash: `and as assert async await begin break case class continue def del do done elif else elsif end esac except exec
    export fi finally for from function global if import in is lambda local match module nonlocal not or pass raise require
    rescue return self set shift source then try unless until when while with yield True False None true false nil null`,
  sql: `add all alter and as asc between by case column commit constraint count create cross default delete desc distinct
    drop else end exists foreign from full group having if in index inner insert into is join key left like limit not null
    offset on or order outer over partition primary references returning right rollback select set table then union unique
    update using values view when where with`,
};

const STRING = String.raw`"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|\x60(?:[^\x60\\]|\\.)*\x60?`;
const NUMBER = String.raw`\b(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)\w*`;
const CALL = String.raw`\b[A-Za-z_]\w*(?=\()`;
const NAME = String.raw`[A-Za-z_$][\w$]*`;

const make = (comment, string, flags = "g") =>
  new RegExp(`(?<comment>${comment})|(?<string>${string})|(?<number>${NUMBER})|(?<call>${CALL})|(?<name>${NAME})`, flags);

const PATTERNS = {
  c: make(String.raw`\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`, STRING),
  hash: make(String.raw`(?<![\w$&])#[^\n]*`, String.raw`"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|${STRING}`),
  sql: make(String.raw`--[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`, String.raw`'(?:[^']|'')*'?`),
  markup: /(?<comment><!--[\s\S]*?(?:-->|$))|(?<string>"[^"\n]*"|'[^'\n]*')|(?<keyword><\/?[\w:-]+|\/?>)|(?<call>[\w:-]+(?==))/g,
  diff: /(?<added>^\+[^\n]*)|(?<removed>^-[^\n]*)|(?<comment>^@@[^\n]*)/gm,
};

const KINDS = {
  hash: "python py ruby rb bash sh shell zsh console yaml yml toml ini r perl make makefile dockerfile elixir nix",
  sql: "sql postgres mysql sqlite plpgsql",
  markup: "html xml svg vue markup",
  diff: "diff patch",
  none: "text txt plain plaintext output log markdown md csv",
};
const KIND = new Map(Object.entries(KINDS).flatMap(([kind, names]) => names.split(" ").map((name) => [name, kind])));
const KEYWORDS = Object.fromEntries(Object.entries(WORDS).map(([kind, words]) => [kind, new Set(words.split(/\s+/))]));

/** A block whose `update(text)` keeps the element, and with it the reader's place. */
export function codeBlock(language, text) {
  const code = el("code");
  const name = /^[\w+#.-]{1,24}$/.test(language) ? language.toLowerCase() : "";
  const bar = el("figcaption", {}, el("span", {}, name || "code"), copyButton("Copy code", () => code.textContent));
  const pre = el("pre", { tabindex: "0", "aria-label": name ? `Code, ${name}` : "Code" }, code);
  const block = el("figure", { class: "code" }, bar, pre);
  block.update = (more) => code.replaceChildren(...coloured(name, more));
  block.update(text);
  return block;
}

function coloured(language, text) {
  const kind = language ? (KIND.get(language) ?? "c") : "none";
  if (kind === "none" || text.length > LONGEST) return [text];
  const out = [];
  let from = 0;
  for (const match of text.matchAll(PATTERNS[kind])) {
    const found = classOf(kind, match);
    if (!found) continue;
    out.push(text.slice(from, match.index), el("span", { class: `c-${found}` }, match[0]));
    from = match.index + match[0].length;
  }
  return [...out, text.slice(from)];
}

function classOf(kind, { groups }) {
  const found = Object.keys(groups).find((name) => groups[name] !== undefined);
  if (found !== "name" && found !== "call") return found;
  if (kind === "markup") return found;
  const word = kind === "sql" ? groups[found].toLowerCase() : groups[found];
  if (KEYWORDS[kind].has(word)) return "keyword";
  return found === "call" ? "call" : null;
}
