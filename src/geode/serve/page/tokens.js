// The token view: how sure the model was of each token, what else it might have said, and a way into those branches.
import { el, find } from "./dom.js";

/** The text of tokens, or null where they end within a character. End tokens add none. */
export function textOf(tokens) {
  const parts = tokens.filter(({ end }) => !end).map(({ text, bytes }) => bytes ?? [...new TextEncoder().encode(text)]);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(parts.flat()));
  } catch {
    return null;
  }
}

const chance = ({ logprob }) => Math.min(1, Math.exp(logprob));

const percent = (p) => (p >= 0.0995 ? `${Math.round(p * 100)} %` : p >= 0.0001 ? `${(p * 100).toPrecision(2)} %` : "< 0.01 %");

/** As it looks in a list: spaces and line breaks visible, parts of characters as their bytes. */
function visible({ text, bytes, end }) {
  if (end) return text || "the end";
  if (bytes) return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

const inText = ({ text, bytes, end }) => (end ? "◇" : bytes ? "▯" : text.replaceAll("\n", "↵\n"));

/** Shows the tokens of one message; `branch(at, token)` is called when another one is chosen. */
export class TokenView {
  constructor(branch) {
    this.branch = branch;
    this.count = 0;
    this.tokens = [];
    this.summary = el("p", { class: "token-summary" });
    this.line = el("div", { class: "tokens", role: "group", "aria-label": "Tokens. Arrow keys go from one to the next, Enter shows what else was likely." });
    this.node = el("div", {}, this.line, this.summary);
    this.line.addEventListener("pointerover", ({ target }) => this.show(target, 120));
    this.line.addEventListener("pointerout", () => popover.leave());
    this.line.addEventListener("focusin", ({ target }) => target.matches(":focus-visible") && this.show(target, 0));
    this.line.addEventListener("click", ({ target }) => this.show(target, 0));
    this.line.addEventListener("keydown", (event) => this.key(event));
  }

  update(tokens, branched) {
    this.tokens = tokens;
    for (; this.count < tokens.length; this.count++) this.line.append(this.span(this.count, branched));
    const mean = Math.exp(tokens.reduce((sum, { logprob }) => sum + logprob, 0) / (tokens.length || 1));
    this.summary.textContent = tokens.length ? `${percent(mean)} likely per token on average. Hover, tap or focus a token for what else it might have been.` : "";
  }

  span(at, branched) {
    const token = this.tokens[at];
    const p = chance(token);
    const label = `${visible(token)}, ${percent(p)}`;
    const span = el("span", { class: at === branched ? "token taken" : "token", role: "button", tabindex: at ? "-1" : "0", "data-at": String(at), "aria-label": label, "aria-haspopup": "dialog" }, inText(token));
    span.style.setProperty("--doubt-of", String(Math.round((1 - p) * 100) / 100));
    return span;
  }

  show(span, wait) {
    if (!span.dataset?.at) return;
    const at = Number(span.dataset.at);
    popover.show(span, this.tokens[at], wait, (token) => this.branch(at, token), this.tokens.slice(0, at));
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const here = event.target.closest(".token");
    if (!here) return;
    if (step) this.focus(Number(here.dataset.at) + step, here);
    else if (["Enter", " ", "ArrowDown"].includes(event.key)) {
      this.show(here, 0);
      popover.enter();
    } else return;
    event.preventDefault();
  }

  focus(at, from) {
    const next = this.line.children[at];
    if (!next) return;
    from.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

/** The one card of alternatives, wherever it is needed. */
const popover = {
  timer: 0,
  from: null,

  show(span, token, wait, choose, before) {
    clearTimeout(this.timer);
    const open = () => this.open(span, this.rows(token, choose, before));
    if (wait) this.timer = setTimeout(open, wait);
    else open(); // a key must find the card at once; a pointer may rest first
  },

  open(span, rows) {
    const card = find("#alternatives");
    this.from?.classList.remove("open");
    this.from = span;
    span.classList.add("open");
    card.replaceChildren(...rows);
    card.hidden = false;
    this.place(card, span.getClientRects()[0] ?? span.getBoundingClientRect());
  },

  rows(token, choose, before) {
    const same = ({ text, logprob }) => text === token.text && logprob === token.logprob;
    const all = token.top.some(same) ? token.top : [token, ...token.top];
    const rows = all.map((other) => this.row(other, same(other), choose, before));
    return [el("p", { class: "card-title" }, token.top.length ? "It might have said" : "Its probability"), el("ul", {}, rows)];
  },

  row(other, isChosen, choose, before) {
    const p = chance(other);
    const possible = textOf([...before, other]) !== null;
    const bar = el("span", { class: "bar" });
    bar.style.setProperty("--part", String(p));
    const inner = [el("span", { class: "what" }, visible(other)), bar, el("span", { class: "chance" }, percent(p))];
    if (isChosen) return el("li", { class: "chosen", "aria-label": `${visible(other)}, ${percent(p)}, chosen` }, inner);
    const label = possible ? `Go on with ${visible(other)}, ${percent(p)}` : `${visible(other)}, ${percent(p)}, a part of a character`;
    const take = () => (this.hide(), choose(other));
    return el("li", {}, el("button", { type: "button", disabled: !possible, "aria-label": label, title: label, onclick: take }, inner));
  },

  place(card, box) {
    const { innerWidth: width, innerHeight: height } = window;
    const left = Math.max(8, Math.min(box.left - 12, width - card.offsetWidth - 8));
    const below = box.bottom + 6 + card.offsetHeight < height;
    card.style.setProperty("left", `${left}px`);
    card.style.setProperty("top", `${below ? box.bottom + 6 : Math.max(8, box.top - card.offsetHeight - 6)}px`);
  },

  enter() {
    find("#alternatives button:not(:disabled)")?.focus();
  },

  leave() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => !find("#alternatives").contains(document.activeElement) && this.hide(), 200);
  },

  hide() {
    clearTimeout(this.timer);
    find("#alternatives").hidden = true;
    this.from?.classList.remove("open");
  },

  key(event) {
    const buttons = [...find("#alternatives").querySelectorAll("button:not(:disabled)")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    else if (event.key === "Escape") {
      this.hide();
      this.from?.focus();
      this.hide();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  },
};

export function watchAlternatives() {
  const card = find("#alternatives");
  card.addEventListener("pointerenter", () => clearTimeout(popover.timer));
  card.addEventListener("pointerleave", () => popover.leave());
  card.addEventListener("keydown", (event) => popover.key(event));
  document.addEventListener("pointerdown", ({ target }) => !card.contains(target) && !target.closest?.(".token") && popover.hide());
  document.addEventListener("scroll", () => popover.hide(), { capture: true, passive: true });
}
