// Elements, icons and small helpers. Text is always text: nothing here, or anywhere on this page, parses HTML.

export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) assign(node, name, value);
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function assign(node, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (typeof value === "function") node.addEventListener(name.slice(2), value);
  else if (name === "value" || name === "checked") node[name] = value;
  else node.setAttribute(name, value === true ? "" : value);
}

export const find = (selector, root = document) => root.querySelector(selector);

const SVG = "http://www.w3.org/2000/svg";
const PATHS = {
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "m5 12.5 4.5 4.5L19 7.5",
  redo: "M20 11a8 8 0 1 0-2.3 6.7M20 5v6h-6",
  edit: "M4 20h4L19.5 8.5l-4-4L4 16zM13 7l4 4",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
  left: "m14.5 6-6 6 6 6",
  right: "m9.5 6 6 6-6 6",
  onward: "M4 12h13M12 6l6 6-6 6",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button that shows an icon and is called by its label. */
export function iconButton(name, label, onclick, props = {}) {
  return el("button", { type: "button", class: "icon-button", title: label, "aria-label": label, onclick, ...props }, icon(name));
}

/** 128 random bits: `crypto.randomUUID` is missing where the page came over plain HTTP from another machine. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function say(text) {
  const live = find("#live");
  live.textContent = "";
  requestAnimationFrame(() => (live.textContent = text));
}

/** A line at the bottom, with perhaps one thing to do about it. */
export function toast(text, action = null, seconds = 8) {
  const close = () => note.remove();
  const act = action && el("button", { type: "button", onclick: () => (close(), action.run()) }, action.label);
  const note = el("div", { class: "toast" }, el("span", {}, text), act);
  find("#toasts").replaceChildren(note);
  setTimeout(close, seconds * 1000);
}

export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = el("textarea", { class: "hidden", value: text, "aria-hidden": "true" });
  document.body.append(area);
  area.select();
  document.execCommand("copy"); // the only way where the page came over plain HTTP from another machine
  area.remove();
}

export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    try {
      await copy(text());
    } catch {
      return toast("The browser did not allow copying.");
    }
    button.replaceChildren(icon("check"));
    say("Copied.");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function fileName(text, ending) {
  const safe = text.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "conversation";
  return `${safe}.${ending}`;
}
