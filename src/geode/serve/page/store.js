// Conversations, kept in this browser and nowhere else. What one consists of is not known here, but for id and title.

const MEMORY = new Map(); // where the browser allows no database, as in some private windows
let opening;

export let lasting = true;

function database() {
  return (opening ??= new Promise((resolve) => {
    let request;
    try {
      request = indexedDB.open("geode", 1);
    } catch {
      return resolve(forget());
    }
    request.onupgradeneeded = () => request.result.createObjectStore("talks", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(forget());
  }));
}

function forget() {
  lasting = false;
  return null;
}

async function run(mode, work, instead) {
  const base = await database();
  if (!base) return instead();
  return new Promise((resolve, reject) => {
    const transaction = base.transaction("talks", mode);
    const request = work(transaction.objectStore("talks"));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error ?? new Error("The browser kept nothing."));
  });
}

const others = "BroadcastChannel" in window ? new BroadcastChannel("geode") : null;

/** Called with the id of what another tab of this page has changed. */
export const onChange = (tell) => others && (others.onmessage = ({ data }) => tell(data));

export const load = (id) => run("readonly", (talks) => talks.get(id), () => structuredClone(MEMORY.get(id)));
export const loadAll = () => run("readonly", (talks) => talks.getAll(), () => [...MEMORY.values()]);

export async function save(talk) {
  await run("readwrite", (talks) => talks.put(talk), () => MEMORY.set(talk.id, structuredClone(talk)));
  others?.postMessage(talk.id);
}

export async function remove(id) {
  await run("readwrite", (talks) => talks.delete(id), () => MEMORY.delete(id));
  others?.postMessage(id);
}

/** Small things that outlive the window: the theme, the last settings. */
export function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`geode-${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(`geode-${name}`, JSON.stringify(value));
  } catch {
    // full or forbidden: it holds until the window closes
  }
}
