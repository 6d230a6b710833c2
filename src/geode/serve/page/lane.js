// One column: the messages of one lane along its chosen branches, followed while the reader is at the end.
import { el } from "./dom.js";
import { MessageView } from "./message.js";
import { path } from "./tree.js";

const NEAR = 90; // pixels from the end that still count as there

export class LaneView {
  constructor(lane, actions, head, empty) {
    Object.assign(this, { lane, actions, views: new Map(), frame: 0, following: true });
    this.log = el("div", { class: "log" });
    this.end = el("button", { type: "button", class: "to-end", hidden: true, onclick: () => this.toEnd() }, "Latest ↓");
    this.scroller = el("div", { class: "scroller", tabindex: "-1" }, empty, this.log);
    this.empty = empty;
    this.root = el("section", { class: "lane", "aria-label": "Conversation" }, head, this.scroller, this.end);
    this.scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.follow()).observe(this.log);
  }

  /** Once a frame, however many tokens came. */
  later(tokens) {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.update(tokens());
    });
  }

  update(tokens) {
    const nodes = path(this.lane.tree);
    const kept = new Set(nodes.map(({ id }) => id));
    for (const [id, view] of this.views) if (!kept.has(id)) this.drop(id, view);
    nodes.forEach((node, i) => {
      const view = this.viewOf(node);
      if (this.log.children[i] !== view.root) this.log.insertBefore(view.root, this.log.children[i] ?? null);
      view.update(tokens);
    });
    if (this.empty) this.empty.hidden = nodes.length > 0;
    this.follow();
  }

  viewOf(node) {
    if (!this.views.has(node.id)) this.views.set(node.id, new MessageView(node, this.lane, this.actions));
    return this.views.get(node.id);
  }

  drop(id, view) {
    view.root.remove();
    this.views.delete(id);
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR;
    this.end.hidden = this.following;
  }

  follow() {
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.scrolled();
  }

  toEnd() {
    this.following = true;
    this.follow();
  }
}
