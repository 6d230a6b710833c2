// The frame around the lanes: heads, pickers, the composer's button, and when each is drawn anew.
import { el, find, say } from "./dom.js";
import { LaneView } from "./lane.js";
import { TalkList } from "./list.js";
import { isRunning } from "./answers.js";
import { changed, showSettings } from "./settings.js";
import { shownTitle } from "./talks.js";
import { path } from "./tree.js";

const STARTS = [
  ["How a geode forms", "How does a geode form? Explain it in three short paragraphs."],
  ["A function, with tests", "Write a Python function that merges two sorted lists, with a short test of it."],
  ["Two things, compared", "Compare tea and coffee in a table: taste, caffeine, preparation."],
];

export class Screen {
  constructor() {
    this.lanes = new Map();
  }

  /** Once the app is there: both know each other. */
  meet(app, ask, status) {
    Object.assign(this, { app, ask, status });
    this.talks = new TalkList({ open: (id) => app.open(id), rename: (id, name) => app.rename(id, name), remove: (id) => app.removeTalk(id) });
  }

  all() {
    const { talk } = this.app;
    this.lanes = new Map(talk.lanes.map((lane) => [lane, this.laneView(lane, talk.lanes.length > 1)]));
    find("#lanes").replaceChildren(...[...this.lanes.values()].map(({ root }) => root));
    find("#lanes").classList.toggle("two", talk.lanes.length > 1);
    for (const lane of talk.lanes) this.lane(lane);
    this.list();
    this.head();
    showSettings(find("#fields"), talk.settings, () => this.app.settingsChanged());
  }

  laneView(lane, compared) {
    const head = compared ? el("header", { class: "lane-head" }, this.picker(lane)) : null;
    return new LaneView(lane, this.app.actions, head, this.welcome(compared));
  }

  welcome(compared) {
    const start = ([label, text]) => el("button", { type: "button", class: "start", onclick: () => this.ask(text) }, label);
    const picture = el("img", { src: new URL("geode.svg", import.meta.url).href, alt: "", width: "200", height: "184" });
    const words = el("p", { class: "welcome-words" }, compared ? "One question, two models." : "Plain outside. Look inside.");
    return el("div", { class: "welcome" }, picture, words, el("div", { class: "starts" }, STARTS.map(start)));
  }

  picker(lane) {
    const names = this.app.models.includes(lane.model) || !lane.model ? this.app.models : [lane.model, ...this.app.models];
    const select = el("select", { class: "model", "aria-label": "Model" }, names.map((name) => el("option", { value: name }, name)));
    select.value = lane.model;
    select.addEventListener("change", () => this.app.setModel(lane, select.value));
    return select;
  }

  head() {
    const { talk, tokens } = this.app;
    if (!talk) return;
    const two = talk.lanes.length > 1;
    find("#picker").replaceChildren(two ? "" : this.picker(talk.lanes[0]));
    if (two) for (const [lane, view] of this.lanes) find(".lane-head", view.root)?.replaceChildren(this.picker(lane));
    find("#title").textContent = shownTitle(talk);
    document.title = talk.title ? `${talk.title} · Geode` : "Geode";
    find("#compare").setAttribute("aria-pressed", String(two));
    find("#tokens").setAttribute("aria-pressed", String(tokens));
    const count = changed(talk.settings);
    find("#settings-open .label").textContent = count ? `Settings · ${count}` : "Settings";
    this.button();
  }

  list() {
    this.talks.update(this.app.talks, this.app.talk?.id);
  }

  lane(lane) {
    this.lanes.get(lane)?.update(this.app.tokens);
    this.button();
  }

  /** While an answer grows: at most once a frame. */
  soon(talk, lane) {
    if (talk !== this.app.talk) return;
    this.lanes.get(lane)?.later(() => this.app.tokens);
    this.button();
  }

  follow(lane) {
    this.lanes.get(lane)?.toEnd();
    this.status.ask();
    say("Answering.");
  }

  done(talk, lane, node) {
    if (talk === this.app.talk) this.lane(lane);
    this.button();
    this.status.ask();
    say(node.error ?? `${talk.lanes.length > 1 ? `${node.model}: ` : ""}${node.content}`);
  }

  edit(lane, node) {
    this.lanes.get(lane).viewOf(node).edit();
  }

  busy() {
    return this.app.talk.lanes.some((lane) => path(lane.tree).some(({ id }) => isRunning(id)));
  }

  button() {
    const busy = this.busy();
    const send = find("#send");
    if (send.classList.contains("stop") === busy) return;
    send.classList.toggle("stop", busy);
    send.setAttribute("aria-label", busy ? "Stop" : "Send");
    send.title = busy ? "Stop (Esc)" : "Send (Enter)";
  }
}
