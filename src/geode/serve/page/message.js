// One message on the screen: its text, its buttons, and an editor in its place. What the buttons do is not known here.
import { copyButton, el, iconButton } from "./dom.js";
import { Markdown } from "./markdown.js";
import { TokenView } from "./tokens.js";
import { figuresText, isRunning } from "./answers.js";

const THOUGHT = /^\s*<think>([\s\S]*?)(?:<\/think>|$)/;

export class MessageView {
  constructor(node, lane, actions) {
    Object.assign(this, { node, lane, actions, mode: null });
    this.body = el("div", { class: "body" });
    this.note = el("p", { class: "note", hidden: true });
    this.tools = el("footer", { class: "tools" });
    this.root = el("article", { class: `message ${node.role}`, "data-id": node.id }, this.body, this.note, this.tools);
  }

  /** Shows the message as it is now. `tokens`: as tokens rather than as text. */
  update(tokens) {
    const { node, root } = this;
    const live = isRunning(node.id);
    root.classList.toggle("live", live);
    root.setAttribute("aria-busy", String(live));
    root.setAttribute("aria-label", node.role === "user" ? "You" : `Answer by ${node.model}`);
    if (!this.editor) this.showBody(tokens && node.role === "assistant" && Boolean(node.tokens?.length), live);
    this.showNote(live);
    this.showTools(live);
  }

  showBody(tokens, live) {
    const mode = this.node.role === "user" ? "plain" : tokens ? "tokens" : "text";
    if (mode !== this.mode) this.begin(mode);
    if (mode === "plain") this.body.textContent = this.node.content;
    else if (mode === "tokens") this.tokens.update(this.node.tokens, this.node.branched);
    else this.showText(live);
  }

  begin(mode) {
    this.mode = mode;
    this.body.replaceChildren();
    this.thought = null;
    if (mode === "tokens") this.tokens = new TokenView((at, token) => this.actions.branch(this.lane, this.node, at, token));
    if (mode === "tokens") this.body.append(this.tokens.node);
    if (mode !== "text") return;
    this.prose = el("div", { class: "prose" });
    this.body.append(this.prose);
    this.text = new Markdown(this.prose);
  }

  showText(live) {
    const { content } = this.node;
    const thought = THOUGHT.exec(content);
    if (thought) this.showThought(thought[1].trim());
    this.text.update(thought ? content.slice(thought[0].length) : content, live);
    this.prose.classList.toggle("empty", live && !content);
  }

  showThought(text) {
    if (!this.thought) {
      const inner = el("div", { class: "prose" });
      this.thought = new Markdown(inner);
      this.body.prepend(el("details", { class: "thought" }, el("summary", {}, "Thoughts"), inner));
    }
    this.thought.update(text);
  }

  showNote(live) {
    const { node, note } = this;
    const text = live ? "" : (node.error ?? { length: "The answer is longer than was allowed.", stopped: "You stopped this answer." }[node.finish] ?? "");
    note.textContent = text;
    note.hidden = !text;
    note.classList.toggle("error", Boolean(node.error));
    if (node.error) note.setAttribute("role", "alert");
    else note.removeAttribute("role");
  }

  showTools(live) {
    const { node, tools } = this;
    const place = this.actions.place(this.lane, node);
    const state = [live, place.join("/"), node.finish, Boolean(node.content), Boolean(this.editor)].join();
    if (state !== this.state) tools.replaceChildren(...this.buttons(live, place));
    this.state = state;
    if (!this.figures || node.role === "user") return;
    this.figures.textContent = node.figures && (node.figures.made || !live) ? figuresText(node.figures) : "";
  }

  buttons(live, place) {
    if (this.editor) return [];
    const { node, lane, actions } = this;
    const own = node.role === "user" ? this.userButtons() : live ? [] : this.answerButtons();
    this.figures = node.role === "user" ? null : el("span", { class: "figures" });
    const remove = live ? null : iconButton("trash", "Delete this message and what follows", () => actions.remove(lane, node));
    return [this.switcher(place, live), node.content ? copyButton("Copy", () => node.content) : null, ...own, remove, this.figures].filter(Boolean);
  }

  userButtons() {
    return [iconButton("edit", "Edit and branch", () => this.edit())];
  }

  answerButtons() {
    const { node, lane, actions } = this;
    const more = ["length", "stopped"].includes(node.finish) && node.content;
    return [
      iconButton("redo", "Answer again", () => actions.regenerate(lane, node)),
      iconButton("edit", "Edit this answer", () => this.edit()),
      more ? iconButton("onward", "Continue this answer", () => actions.goOn(lane, node)) : null,
    ];
  }

  switcher([at, count], live) {
    if (count < 2) return null;
    const to = (step) => () => this.actions.choose(this.lane, this.node, step);
    const left = iconButton("left", "Previous branch", to(-1), { disabled: at === 1 || live });
    const right = iconButton("right", "Next branch", to(1), { disabled: at === count || live });
    const label = el("span", { class: "place" }, `${at}/${count}`);
    return el("span", { class: "switcher", role: "group", "aria-label": `Branch ${at} of ${count}` }, left, label, right);
  }

  edit() {
    if (this.editor || isRunning(this.node.id)) return;
    const { node, lane, actions } = this;
    const asked = node.role === "user";
    const area = el("textarea", { value: node.content, "aria-label": "Edit the message", rows: "1" });
    const done = () => this.endEdit();
    const save = () => area.value.trim() && (done(), actions.edit(lane, node, area.value));
    const buttons = el("div", { class: "edit-buttons" },
      el("button", { type: "button", class: "plain", onclick: done }, "Cancel"),
      el("button", { type: "button", class: "primary", onclick: save }, asked ? "Send as a branch" : "Save as a branch"));
    area.addEventListener("keydown", (event) => editorKey(event, save, done));
    this.editor = el("div", { class: "editor" }, area, buttons);
    this.body.replaceChildren(this.editor);
    this.update(false);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  endEdit() {
    this.editor = null;
    this.mode = null;
    this.actions.refresh(this.lane);
    this.root.querySelector('[title^="Edit"]')?.focus();
  }
}

function editorKey(event, save, done) {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) save();
  else if (event.key === "Escape") done();
  else return;
  event.preventDefault();
  event.stopPropagation();
}
