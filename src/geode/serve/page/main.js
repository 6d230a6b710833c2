// Starts the page and joins its parts: buttons, keys, files and the panels at the sides.
import { App } from "./app.js";
import { apiKey, get, setApiKey } from "./api.js";
import { download, fileName, find, toast } from "./dom.js";
import { Screen } from "./screen.js";
import { Status } from "./status.js";
import { lasting } from "./store.js";
import { fromFile, shownTitle, toFile, toMarkdown } from "./talks.js";
import { watchTheme } from "./theme.js";
import { watchAlternatives } from "./tokens.js";
import { path } from "./tree.js";

const LARGEST_FILE = 64 << 20;

const screen = new Screen();
const app = new App(screen);
const status = new Status();
const prompt = find("#prompt");

// The composer

function grow() {
  prompt.style.setProperty("height", "auto");
  prompt.style.setProperty("height", `${Math.min(prompt.scrollHeight, innerHeight * 0.4)}px`);
}

function send() {
  const text = prompt.value;
  if (!text.trim() || !app.send(text)) return;
  prompt.value = "";
  grow();
}

function ask(text) {
  prompt.value = text;
  send();
  prompt.focus();
}

function promptKey(event) {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    if (!screen.busy()) send();
  } else if (event.key === "ArrowUp" && !prompt.value) {
    event.preventDefault();
    app.editLast();
  }
}

function watchComposer() {
  prompt.addEventListener("input", grow);
  prompt.addEventListener("keydown", promptKey);
  find("#composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (screen.busy()) app.stop();
    else send();
  });
}

// Panels

function showSide(open) {
  document.body.classList.toggle("side-open", open);
  find("#veil").hidden = !open;
  find("#menu").setAttribute("aria-expanded", String(open));
  if (open) find("#new").focus();
}

function showSettingsPanel(open) {
  find("#settings").hidden = !open;
  find("#settings-open").setAttribute("aria-expanded", String(open));
  if (open) find("#set-system").focus();
  else find("#settings-open").focus();
}

function create() {
  app.create();
  showSide(false);
  prompt.focus();
}

function watchPanels() {
  find("#menu").addEventListener("click", () => showSide(!document.body.classList.contains("side-open")));
  find("#veil").addEventListener("click", () => showSide(false));
  find("#talks").addEventListener("click", ({ target }) => target.matches(".talk") && showSide(false));
  find("#new").addEventListener("click", create);
  find("#settings-open").addEventListener("click", () => showSettingsPanel(find("#settings").hidden));
  find("#settings-close").addEventListener("click", () => showSettingsPanel(false));
  find("#settings-reset").addEventListener("click", resetSettings);
  find("#compare").addEventListener("click", () => app.compare());
  find("#tokens").addEventListener("click", showTokens);
  document.addEventListener("click", ({ target }) => !find("#export").contains(target) && find("#export").removeAttribute("open"));
}

function resetSettings() {
  for (const name of Object.keys(app.talk.settings)) delete app.talk.settings[name];
  app.settingsChanged();
  screen.all();
}

function showTokens() {
  app.showTokens(!app.tokens);
  screen.head();
  const bare = app.talk.lanes.some((lane) => path(lane.tree).some(({ role, tokens }) => role === "assistant" && !tokens));
  if (app.tokens && bare) toast("From now on answers come with the probability of each token.", null, 4);
}

// Files

async function importFile(file) {
  try {
    if (file.size > LARGEST_FILE) throw new Error("This file is larger than 64 MB.");
    const talks = fromFile(await file.text());
    await app.take(talks);
    toast(talks.length === 1 ? "One conversation came in." : `${talks.length} conversations came in.`);
  } catch (problem) {
    toast(problem.message);
  }
}

function watchFiles() {
  const file = find("#file");
  find("#import").addEventListener("click", () => file.click());
  file.addEventListener("change", () => file.files[0] && importFile(file.files[0]).then(() => (file.value = "")));
  const json = (talks, name) => download(fileName(name, "json"), "application/json", toFile(talks));
  find("#export-all").addEventListener("click", () => json(app.talks, "geode conversations"));
  find("#export-json").addEventListener("click", () => json([app.talk], shownTitle(app.talk)));
  find("#export-markdown").addEventListener("click", () => download(fileName(shownTitle(app.talk), "md"), "text/markdown", toMarkdown(app.talk)));
  find("#export div").addEventListener("click", () => find("#export").removeAttribute("open"));
}

// The server

async function loadModels() {
  try {
    const { data } = await get("v1/models");
    app.setModels(data.map(({ id }) => id));
  } catch (problem) {
    if (problem.status === 401 || problem.status === 403) askKey(problem.message);
    else toast(problem.message, { label: "Try again", run: loadModels }, 60);
  }
  status.ask();
}

function askKey(why) {
  if (why) find("#key-why").textContent = why;
  find("#key-field").value = apiKey();
  find("#key-dialog").showModal();
}

function watchKey() {
  find("#key").addEventListener("click", () => askKey());
  find("#key-dialog").addEventListener("close", ({ target }) => {
    if (target.returnValue !== "save") return;
    setApiKey(find("#key-field").value.trim());
    loadModels();
  });
  find("#key-field").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    find("#key-dialog").close("save");
  });
}

// Keys that work everywhere

function anyKey(event) {
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    create();
  } else if (event.key === "Escape" && !find("dialog[open]")) escape();
}

function escape() {
  if (screen.busy()) app.stop();
  else if (document.body.classList.contains("side-open")) showSide(false);
  else if (find("#export").open) find("#export").removeAttribute("open");
  else if (!find("#settings").hidden) showSettingsPanel(false);
}

async function start() {
  screen.meet(app, ask, status);
  await app.start();
  watchComposer();
  watchPanels();
  watchFiles();
  watchKey();
  watchTheme(find("#theme"));
  watchAlternatives();
  document.addEventListener("keydown", anyKey);
  addEventListener("hashchange", () => app.open(location.hash.slice(1)));
  prompt.focus();
  await loadModels();
  document.documentElement.dataset.ready = "";
  if (!lasting) toast("This browser keeps nothing for this page: conversations end with the window. Export what you need.");
}

start();
