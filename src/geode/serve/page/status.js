// What the server is doing: asked now and then while somebody looks. Fields it does not send are not shown.
import { el, find } from "./dom.js";
import { get } from "./api.js";

const OFTEN = 2000;
const SELDOM = 15_000;

export class Status {
  constructor() {
    this.box = find("#status");
    this.line = find("#status-line");
    this.detail = find("#status-detail");
    this.last = null;
    this.box.addEventListener("toggle", () => this.ask());
    document.addEventListener("visibilitychange", () => this.ask());
  }

  /** Soon again where the details are open or answers are made, else seldom, never while the page is hidden. */
  async ask() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    try {
      this.show(await get("v1/status"));
    } catch (problem) {
      this.fail(problem);
    }
    const soon = this.box.open || this.box.dataset.state === "busy";
    this.timer = setTimeout(() => this.ask(), soon ? OFTEN : SELDOM);
  }

  fail(problem) {
    this.box.dataset.state = problem.status ? "closed" : "gone";
    this.line.textContent = { 0: "server not reached", 401: "key needed", 403: "key refused" }[problem.status] ?? "status not known";
    this.detail.replaceChildren(el("p", { class: "hint" }, problem.message));
  }

  show(status) {
    const models = (status.models ?? []).filter(({ parent }) => !parent); // an adapter has its base's engine
    const sum = (name) => models.reduce((total, { stats }) => total + (stats?.[name] ?? 0), 0);
    const [running, waiting] = [sum("running"), sum("waiting")];
    this.box.dataset.state = running ? "busy" : "ready";
    this.line.textContent = running || waiting ? `${running} running, ${waiting} waiting` : "ready";
    const foot = `${this.speed(sum("generated_tokens"))} tokens/s now · Geode ${status.version}, up ${duration(status.uptime_seconds)}`;
    this.detail.replaceChildren(...models.map(card), el("p", { class: "hint" }, foot));
  }

  speed(total) {
    const now = performance.now();
    const { total: before, time } = this.last ?? { total, time: now - 1 };
    this.last = { total, time: now };
    return Math.max(0, Math.round(((total - before) / (now - time)) * 1000)).toLocaleString("en");
  }
}

function card({ id, loaded, max_model_len: context, stats, bytes_held: held, bytes_reserved: reserved }) {
  const rows = [
    ["State", loaded ? "loaded" : "on demand"],
    ["Running", stats?.running],
    ["Waiting", stats?.waiting],
    ["Context", tokens(context)],
    ["Memory", held && `${gib(held)} of at most ${gib(reserved)} GiB`],
    ["Answered", tokens(stats?.generated_tokens)],
    ["Read", tokens(stats?.prompt_tokens)],
    ["From memory", tokens(stats?.cached_tokens)],
  ].filter(([, value]) => value !== undefined && value !== null);
  const list = rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]);
  return el("section", { class: "status-model" }, el("h3", {}, id), el("dl", {}, list), stats && pages(stats));
}

const gib = (bytes) => (bytes / 2 ** 30).toFixed(2);
const tokens = (count) => (Number.isFinite(count) ? `${count.toLocaleString("en")} tokens` : undefined);

function duration(seconds) {
  const steps = [["day", 86_400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [name, size] = steps.find(([, size]) => seconds >= size) ?? steps.at(-1);
  const count = Math.floor(seconds / size);
  return `${count} ${name}${count === 1 ? "" : "s"}`;
}

/** Memory for keys and values: held by requests, kept for reuse, free. */
function pages({ pages, pages_used, pages_kept }) {
  const total = sumOf(pages);
  if (!total) return null;
  const [used, kept] = [sumOf(pages_used), sumOf(pages_kept)];
  const label = `Pages of context: ${percent(used, total)} in use, ${percent(kept, total)} kept for reuse`;
  const bar = el("div", { class: "pages", role: "img", "aria-label": label });
  bar.style.setProperty("--used", String(used / total));
  bar.style.setProperty("--kept", String(kept / total));
  return [bar, el("p", { class: "hint" }, label)];
}

const sumOf = (value) => [value ?? 0].flat().reduce((total, each) => total + each, 0);
const percent = (part, whole) => `${Math.round((100 * part) / whole)} %`;
