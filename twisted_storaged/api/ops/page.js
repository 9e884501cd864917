// Keeps the page up to date, and uploads files. Everything that it shows is set as text, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
let token = document.querySelector("meta[name=storaged-token]").content;

// -- What is under way: the server has made all texts, see page_view.py.

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// The same as `_filled` in page_elements.py: a bar, if there is one, and a text.
function fill(element, cell) {
  element.dataset.tone = cell.tone ?? "";
  element.title = cell.hint ?? "";
  let bar = element.querySelector("progress");
  if (cell.done === undefined) {
    bar?.remove();
  } else {
    if (!bar) {
      bar = document.createElement("progress");
      bar.setAttribute("aria-hidden", "true");
      element.prepend(bar);
    }
    bar.value = cell.done;
  }
  if (element.lastChild?.nodeType !== Node.TEXT_NODE) element.append("");
  setText(element.lastChild, cell.text);
}

function newCell(cell, label, isHeader) {
  const element = document.createElement(isHeader ? "th" : "td");
  if (isHeader) element.scope = "row";
  else element.dataset.label = label;
  if (cell.span) element.colSpan = cell.span;
  return element;
}

function fillTable(table, rows) {
  const body = table.tBodies[0];
  const labels = Array.from(table.tHead.rows[0].cells, (head) => head.textContent);
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((row, index) => {
    const line = body.rows[index] ?? body.insertRow();
    // A row that says something about all columns becomes one with a cell for each, and back.
    if (line.cells.length !== row.length) {
      line.replaceChildren(...row.map((cell, at) => newCell(cell, labels[at], at === 0 && !cell.span)));
    }
    row.forEach((cell, at) => fill(line.cells[at], cell));
  });
}

function show(view) {
  token = view.token;
  for (const [id, cell] of Object.entries(view.cells)) fill(byId(id), cell);
  for (const [id, rows] of Object.entries(view.tables)) fillTable(byId(id), rows);
  for (const [id, path] of Object.entries(view.lines)) byId(id).setAttribute("d", path);
}

// -- Events.

const RETRY_MILLISECONDS = 5000;
const pause = byId("pause");
let source = null;
let paused = false;

function setLive(text, tone) {
  setText(byId("live"), text);
  byId("live").dataset.tone = tone;
}

function connect() {
  if (source || paused || document.hidden) return;
  source = new EventSource("/page/events");
  source.onmessage = (event) => {
    show(JSON.parse(event.data));
    setLive("Live", "good");
  };
  source.onerror = () => {
    setLive("Not up to date", "warn");
    // A browser tries again by itself after a connection was lost, but not after an error.
    if (source.readyState === EventSource.CLOSED) {
      disconnect();
      setTimeout(connect, RETRY_MILLISECONDS);
    }
  };
}

function disconnect() {
  source?.close();
  source = null;
}

pause.hidden = false;
byId("again").hidden = true;
pause.addEventListener("click", () => {
  paused = !paused;
  setText(pause, paused ? "Go on" : "Pause");
  setLive(paused ? "Paused" : "", "warn");
  disconnect();
  connect();
});
// A page that nobody sees takes no connection.
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
connect();

// -- Uploads, one after the other: there are few put slots.

const MOST_ATTEMPTS = 10;
const upload = byId("upload");
const waiting = [];
let uploading = false;
let failed = false;

function button(text, action) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  element.addEventListener("click", action);
  return element;
}

class Upload {
  constructor(file, folder) {
    this.file = file;
    this.key = folder + file.name;
    this.bucket = upload.dataset.bucket ? `&bucket=${encodeURIComponent(upload.dataset.bucket)}` : "";
    this.line = document.createElement("li");
    const name = document.createElement("span");
    name.className = "key";
    name.textContent = this.key;
    this.bar = document.createElement("progress");
    this.bar.setAttribute("aria-label", this.key);
    this.bar.max = 1;
    this.bar.value = 0;
    this.text = document.createElement("span");
    this.actions = document.createElement("span");
    this.line.append(name, this.bar, this.text, this.actions);
    byId("uploads").append(this.line);
    this.say("waits");
  }

  say(text, tone = "", ...actions) {
    this.text.textContent = text;
    this.text.dataset.tone = tone;
    this.actions.replaceChildren(...actions);
  }

  ask(text, ...answers) {
    return new Promise((resolve) => {
      this.say(text, "warn", ...answers.map((answer) => button(answer, () => resolve(answer))));
    });
  }

  // Whether there is an object with this key: then it is the first whose key begins with it.
  async exists() {
    try {
      const found = await fetch(`/storage/list?limit=1&prefix=${encodeURIComponent(this.key)}${this.bucket}`);
      return found.ok && (await found.json()).objects[0]?.key === this.key;
    } catch {
      return false;
    }
  }

  async run() {
    if ((await this.exists()) && (await this.ask("There is an object with this key.", "Replace it", "Skip")) === "Skip") {
      this.say("skipped");
      return;
    }
    for (let attempt = 1; ; attempt += 1) {
      const answer = await this.put();
      if (answer.status === 200) {
        this.say("stored", "good");
        return;
      }
      if (answer.status === 503 && answer.retryAfter && attempt < MOST_ATTEMPTS) {
        this.say(`${answer.text}: tries again in ${answer.retryAfter} s`, "warn");
        await new Promise((resolve) => setTimeout(resolve, answer.retryAfter * 1000));
        continue;
      }
      failed = true;
      this.say(answer.text, "bad", button("Try again", () => start(this)));
      return;
    }
  }

  put() {
    return new Promise((resolve) => {
      const request = new XMLHttpRequest();
      // With its slashes escaped, no part of a key is a step in the folders of a URL.
      request.open("PUT", `/page/upload/${encodeURIComponent(this.key)}?${this.bucket}`);
      request.setRequestHeader("X-Storaged-Token", token);
      request.upload.onprogress = (event) => (this.bar.value = event.total ? event.loaded / event.total : 1);
      request.onloadend = () => {
        resolve({
          status: request.status,
          retryAfter: Number(request.getResponseHeader("Retry-After")),
          text: request.responseText.trim() || (this.stopped ? "stopped" : "the connection was lost"),
        });
      };
      request.send(this.file);
      this.say("is sent", "", button("Stop", () => { this.stopped = true; request.abort(); }));
    });
  }
}

async function start(...more) {
  waiting.push(...more);
  if (uploading) return;
  uploading = true;
  failed = false;
  while (waiting.length) await waiting.shift().run();
  uploading = false;
  // To show the list with what was stored.
  if (!failed) location.reload();
}

function add(files) {
  const folder = byId("folder").value;
  start(...Array.from(files, (file) => new Upload(file, folder)));
}

const objects = byId("objects");
upload.hidden = false;
upload.addEventListener("submit", (event) => event.preventDefault());
byId("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
objects.addEventListener("dragover", (event) => {
  event.preventDefault();
  objects.classList.add("drop");
});
for (const name of ["dragleave", "drop"]) objects.addEventListener(name, () => objects.classList.remove("drop"));
objects.addEventListener("drop", (event) => {
  event.preventDefault();
  add(event.dataTransfer.files);
});
// What is dropped beside the list must not replace the page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
