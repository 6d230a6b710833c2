// The conversations of this browser, newest first: to open, search, name and delete. They are kept by others.
import { el, find, iconButton } from "./dom.js";
import { mentions, shownTitle } from "./talks.js";

const DAY = 86_400_000;

export class TalkList {
  constructor(actions) {
    Object.assign(this, { actions, talks: [], current: null, naming: null });
    this.place = find("#talks");
    this.search = find("#search");
    this.search.addEventListener("input", () => this.show());
    this.search.addEventListener("keydown", (event) => event.key === "ArrowDown" && this.step(event, -1, 1));
    this.place.addEventListener("keydown", (event) => this.key(event));
  }

  update(talks, current) {
    this.talks = talks;
    this.current = current;
    this.show();
  }

  show() {
    const words = this.search.value.trim();
    const found = this.talks.filter((talk) => !words || mentions(talk, words)).sort((a, b) => b.updated - a.updated);
    const groups = Map.groupBy ? Map.groupBy(found, group) : new Map([["", found]]);
    const shown = [...groups].map(([name, talks]) => [name && el("h3", {}, name), el("ul", {}, talks.map((talk) => this.row(talk)))]);
    this.place.replaceChildren(...shown.flat().filter(Boolean));
    if (!found.length) this.place.append(el("p", { class: "none" }, words ? "Nothing found." : "Conversations stay in this browser."));
  }

  row(talk) {
    if (this.naming === talk.id) return el("li", {}, this.nameField(talk));
    const current = talk.id === this.current;
    const open = el("button", { type: "button", class: "talk", "aria-current": current ? "page" : null, onclick: () => this.actions.open(talk.id) }, shownTitle(talk));
    const rename = iconButton("edit", `Rename ${shownTitle(talk)}`, () => this.rename(talk.id));
    const remove = iconButton("trash", `Delete ${shownTitle(talk)}`, () => this.actions.remove(talk.id));
    return el("li", { class: current ? "current" : null }, open, el("span", { class: "row-tools" }, rename, remove));
  }

  rename(id) {
    this.naming = id;
    this.show();
    find("input", this.place).select();
  }

  nameField(talk) {
    const field = el("input", { value: shownTitle(talk), "aria-label": "Name of the conversation", maxlength: "200" });
    const end = (name) => {
      if (this.naming !== talk.id) return;
      this.naming = null;
      if (name) this.actions.rename(talk.id, name);
      this.show();
    };
    field.addEventListener("blur", () => end(field.value.trim()));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(field.value.trim());
      else if (event.key === "Escape") end("");
      else return;
      event.stopPropagation();
    });
    return field;
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const rows = [...this.place.querySelectorAll(".talk")];
    const at = rows.indexOf(event.target);
    if (at < 0) return;
    if (event.key === "F2") find(".row-tools button", event.target.parentElement).click();
    else if (event.key === "Delete") find(".row-tools button:last-child", event.target.parentElement).click();
    else if (step) this.step(event, at, step);
  }

  step(event, at, by) {
    const rows = [...this.place.querySelectorAll(".talk")];
    (at + by < 0 ? this.search : rows[at + by])?.focus();
    event.preventDefault();
  }
}

function group({ updated }) {
  const days = Math.floor((new Date().setHours(24, 0, 0, 0) - updated) / DAY);
  return days < 1 ? "Today" : days < 2 ? "Yesterday" : days < 7 ? "This week" : days < 31 ? "This month" : "Earlier";
}
