// The conversation that is open, and everything that can be done to it. Views show it; the store keeps it.
import { toast } from "./dom.js";
import { answer, isRunning, stop, stopAll } from "./answers.js";
import { textOf } from "./tokens.js";
import { SettingError, requestOf } from "./settings.js";
import * as store from "./store.js";
import { isBlank, newLane, newTalk, titleFrom } from "./talks.js";
import { add, asMessages, before, choose, copyTree, isEmpty, leaf, path, siblings } from "./tree.js";

const ALTERNATIVES = 5;
const CONTINUES = { add_generation_prompt: false, continue_final_message: true };

export class App {
  constructor(screen) {
    Object.assign(this, { screen, models: [], talks: [], talk: null, tokens: store.recall("tokens", false) });
    this.actions = {
      place: (lane, node) => this.place(lane, node),
      regenerate: (lane, node) => this.regenerate(lane, node),
      choose: (lane, node, step) => (choose(lane.tree, node, step), this.touch(lane)),
      edit: (lane, node, text) => this.edit(lane, node, text),
      branch: (lane, node, at, token) => this.branch(lane, node, at, token),
      goOn: (lane, node) => this.goOn(lane, node),
      remove: (lane, node) => this.removeMessage(lane, node),
      refresh: (lane) => this.screen.lane(lane),
    };
  }

  async start() {
    this.talks = await store.loadAll();
    store.onChange((id) => this.changedElsewhere(id));
    this.open(location.hash.slice(1)) || this.create();
  }

  setModels(models) {
    this.models = models;
    for (const lane of this.talk?.lanes ?? []) lane.model ||= models[0] ?? "";
    this.screen.head();
  }

  // Conversations

  create() {
    const models = this.talk ? this.talk.lanes.map(({ model }) => model) : [this.firstModel()];
    const { system, schema, shape, ...sampling } = store.recall("settings", {}); // a new one asks for nothing special
    this.show(newTalk(models.slice(0, 1), sampling));
  }

  firstModel() {
    const last = store.recall("model", "");
    return this.models.includes(last) ? last : (this.models[0] ?? last);
  }

  open(id) {
    const talk = this.talks.find((each) => each.id === id);
    if (talk) this.show(talk);
    return Boolean(talk);
  }

  show(talk) {
    this.talk = talk;
    history.replaceState(null, "", isBlank(talk) ? location.pathname + location.search : `#${talk.id}`);
    this.screen.all();
  }

  rename(id, title) {
    const talk = this.talks.find((each) => each.id === id);
    talk.title = title;
    this.keep(talk);
    this.screen.head();
  }

  async removeTalk(id) {
    const talk = this.talks.find((each) => each.id === id);
    for (const lane of talk.lanes) for (const node of Object.keys(lane.tree.nodes)) stop(node);
    this.talks = this.talks.filter((each) => each !== talk);
    await store.remove(id);
    if (this.talk === talk) this.create();
    this.screen.list();
    toast("The conversation is deleted.", { label: "Undo", run: () => this.take([talk]) });
  }

  /** Takes over conversations, from a file or from an undone deletion, and opens the first. */
  async take(talks) {
    this.talks.push(...talks);
    for (const talk of talks) await store.save(talk);
    if (talks.length) this.show(talks[0]);
  }

  async changedElsewhere(id) {
    if (this.talk?.id === id && path(this.talk.lanes[0].tree).some((node) => isRunning(node.id))) return;
    const talk = await store.load(id);
    this.talks = this.talks.filter((each) => each.id !== id);
    if (talk) this.talks.push(talk);
    if (this.talk?.id === id && talk) this.show(talk);
    else this.screen.list();
  }

  // Lanes

  compare() {
    if (this.talk.lanes.length === 1) return this.addLane();
    const [lane] = this.talk.lanes.splice(1, 1);
    for (const node of Object.keys(lane.tree.nodes)) stop(node);
    if (!isEmpty(lane.tree)) this.split(lane);
    this.keep(this.talk);
    this.screen.all();
  }

  addLane() {
    const [first] = this.talk.lanes;
    const other = this.models.find((model) => model !== first.model) ?? first.model;
    this.talk.lanes.push({ ...newLane(other), tree: copyTree(first.tree) });
    if (!isBlank(this.talk)) this.keep(this.talk);
    this.screen.all();
  }

  /** The second lane stays, as a conversation of its own. */
  split(lane) {
    const talk = { ...newTalk([lane.model], this.talk.settings), title: `${this.talk.title} · ${lane.model}`, lanes: [lane] };
    this.talks.push(talk);
    this.keep(talk);
    toast("The second column is now a conversation of its own.");
  }

  setModel(lane, model) {
    lane.model = model;
    store.keep("model", model);
    if (!isBlank(this.talk)) this.keep(this.talk);
  }

  showTokens(on) {
    this.tokens = on;
    store.keep("tokens", on);
    for (const lane of this.talk.lanes) this.screen.lane(lane);
  }

  // Messages

  send(text) {
    const { talk } = this;
    if (!this.ready()) return false;
    talk.title ||= titleFrom(text);
    for (const lane of talk.lanes) {
      const last = leaf(lane.tree);
      add(lane.tree, last?.id, { role: "user", content: text });
      this.reply(lane);
    }
    this.screen.head();
    return true;
  }

  /** Whether a request can be made of the settings at all; says why not. */
  ready() {
    try {
      requestOf(this.talk.settings);
      if (this.talk.lanes.some((lane) => !lane.model)) throw new SettingError("The server has named no model yet.");
      return true;
    } catch (problem) {
      if (!(problem instanceof SettingError)) throw problem;
      toast(problem.message);
      return false;
    }
  }

  reply(lane, parent = leaf(lane.tree)) {
    const node = add(lane.tree, parent.id, { role: "assistant", content: "", model: lane.model });
    return this.run(lane, node, {});
  }

  regenerate(lane, node) {
    if (this.ready()) this.reply(lane, lane.tree.nodes[node.parent]);
  }

  edit(lane, node, text) {
    const parent = node.parent || null;
    if (node.role === "assistant") {
      add(lane.tree, parent, { role: "assistant", content: text, model: node.model, finish: "edited" });
      return this.touch(lane);
    }
    if (!this.ready()) return this.screen.lane(lane);
    add(lane.tree, parent, { role: "user", content: text });
    this.reply(lane);
  }

  editLast() {
    const lane = this.talk.lanes[0];
    const last = path(lane.tree).findLast(({ role }) => role === "user");
    if (last) this.screen.edit(lane, last);
  }

  /** Another token at place `at`, and on from there, as a branch beside the first answer. */
  branch(lane, node, at, token) {
    if (!this.ready()) return;
    const kept = [...node.tokens.slice(0, at), { ...token, top: node.tokens[at].top }];
    const content = textOf(kept);
    const next = add(lane.tree, node.parent, { role: "assistant", content, model: node.model, tokens: kept, branched: at });
    if (token.end) {
      next.finish = "stop";
      return this.touch(lane);
    }
    this.run(lane, next, CONTINUES);
  }

  goOn(lane, node) {
    if (this.ready()) this.run(lane, node, CONTINUES);
  }

  removeMessage(lane, node) {
    const snapshot = copyTree(lane.tree);
    const all = siblings(lane.tree, node);
    for (const id of under(lane.tree, node.id)) stop(id);
    const left = all.filter((id) => id !== node.id);
    lane.tree.kids[node.parent] = left;
    for (const id of under(lane.tree, node.id)) delete lane.tree.nodes[id];
    if (left.length) lane.tree.chosen[node.parent] = left[Math.min(all.indexOf(node.id), left.length - 1)];
    else delete lane.tree.chosen[node.parent];
    this.touch(lane);
    toast("The message is deleted, with what followed it.", { label: "Undo", run: () => this.restore(lane, snapshot) });
  }

  restore(lane, snapshot) {
    Object.assign(lane.tree, snapshot);
    this.touch(lane);
    this.screen.all();
  }

  async run(lane, node, extra) {
    const { talk } = this;
    const messages = asMessages([...before(lane.tree, node), ...(extra === CONTINUES ? [node] : [])], talk.settings.system ?? "");
    const logprobs = this.tokens || node.tokens?.length ? { logprobs: true, top_logprobs: ALTERNATIVES } : {};
    if (!logprobs.logprobs) delete node.tokens;
    const body = { model: node.model, messages, ...requestOf(talk.settings), ...logprobs, ...extra };
    this.touch(lane);
    this.screen.follow(lane);
    await answer(node, body, () => this.screen.soon(talk, lane));
    this.keep(talk);
    this.screen.done(talk, lane, node);
  }

  stop() {
    stopAll();
  }

  place(lane, node) {
    const all = siblings(lane.tree, node);
    return [all.indexOf(node.id) + 1, all.length];
  }

  // Keeping

  touch(lane) {
    this.keep(this.talk);
    this.screen.lane(lane);
  }

  keep(talk) {
    talk.updated = Date.now();
    if (!this.talks.includes(talk)) this.talks.push(talk);
    if (talk === this.talk) history.replaceState(null, "", `#${talk.id}`);
    store.save(talk).catch(() => toast("The browser could not keep this conversation: its storage may be full. Export it."));
    this.screen.list();
  }

  settingsChanged() {
    store.keep("settings", this.talk.settings);
    if (!isBlank(this.talk)) this.keep(this.talk);
    this.screen.head();
  }
}

function under(tree, id) {
  const found = [id];
  for (let i = 0; i < found.length; i++) found.push(...(tree.kids[found[i]] ?? []));
  return found;
}
