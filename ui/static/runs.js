// The project's runs: a table, the curves of those that are ticked, a tree, and changes of one run.
// It runs inside a gr.HTML: `element` is its root, `server` calls the page's Python functions. The
// server made the HTML of all parts safe.

const root = element.querySelector(".runs");
const find = (name) => root.querySelector(`[data-part="${name}"]`);
const metric = root.querySelector("#runs-metric");
const RETRY_MS = 1500;
const RUNNING_MS = 5000; // while a run goes on, the page looks again so often
const IDLE_MS = 20000;

const ticked = new Set(); // the names of the runs whose curves are shown
const shown = new Map(); // the HTML of each part, so that what is the same is not drawn again
let opened = ""; // the run whose details are shown
let looks = 0; // replies to earlier questions are not shown
let draws = 0;
let timer = 0;

// The reply to a request; a missing one becomes an error.
async function ask(name, data) {
  try {
    const reply = await server[name](data);
    if (reply) return reply;
  } catch (error) {
    // Handled below, as a missing reply.
  }
  return (await reach()) === 401
    ? { error: LOGGED_OUT, login: true }
    : { error: "The server does not answer; trying again …", lost: true };
}

// A screen reader says the status whenever it is written, so the same text is not written again.
function say(text, reply) {
  const status = find("status");
  if (status.dataset.text === text) return;
  status.dataset.text = text;
  status.textContent = text;
  status.dataset.kind = reply?.lost ? "lost" : reply?.error ? "warn" : "";
  if (reply?.login) addLogin(status);
}

function put(name, html) {
  if (shown.get(name) === html) return false;
  shown.set(name, html);
  find(name).innerHTML = html;
  return true;
}

// ---- the table

async function look(message) {
  clearTimeout(timer);
  const number = (looks += 1);
  const reply = await ask("runs", {});
  if (number !== looks || !element.isConnected) return;
  if (reply.error) {
    say(reply.error, reply);
    if (!reply.login) timer = setTimeout(look, RETRY_MS);
    return;
  }
  if (message) say(message);
  else if (find("status").dataset.kind === "lost" || !shown.size) say("");
  const focus = document.activeElement?.closest("[data-do]")?.dataset;
  const drawn = put("table", reply.table);
  put("tree", reply.tree);
  const gone = [...ticked].filter((name) => !reply.names.includes(name));
  gone.forEach((name) => ticked.delete(name));
  if (!reply.names.includes(opened)) opened = "";
  if (drawn) await redrawn(focus);
  if (drawn || reply.running || gone.length) drawCurves();
  again(reply.running ? RUNNING_MS : IDLE_MS);
}

// Looks once more after a while; a page that nobody sees, or where somebody decides, waits on.
function again(ms) {
  timer = setTimeout(() => {
    if (!element.isConnected) return;
    const busy = document.hidden || root.querySelector("dialog[open]");
    if (busy) again(ms);
    else look();
  }, ms);
}

// What was ticked, opened and focused in the old table is so in the new one.
async function redrawn(focus) {
  checkBoxes();
  if (opened) await open(opened);
  if (focus?.run) root.querySelector(`[data-do="${focus.do}"][data-run="${focus.run}"]`)?.focus();
}

function checkBoxes() {
  for (const box of root.querySelectorAll('[data-do="tick"]')) box.checked = ticked.has(box.dataset.run);
}

async function open(name) {
  const reply = await ask("details", { run: name });
  if (reply.error) return say(reply.error, reply);
  close();
  const row = find("table").querySelector(`tr[data-row="${name}"]`);
  if (!row) return;
  opened = name;
  row.querySelector('[data-do="open"]').setAttribute("aria-expanded", "true");
  const details = document.createElement("tr");
  const cell = document.createElement("td");
  details.className = "details";
  cell.colSpan = row.cells.length;
  cell.innerHTML = reply.html;
  details.append(cell);
  row.after(details);
}

function close() {
  opened = "";
  find("table").querySelector("tr.details")?.remove();
  for (const button of root.querySelectorAll('[aria-expanded="true"]')) button.setAttribute("aria-expanded", "false");
}

// ---- changes

async function change(name, data) {
  const reply = await ask(name, data);
  if (reply.error) say(reply.error, reply);
  if (reply.lost) await look(); // until the table shows what was saved
  else if (!reply.error) await look(reply.message);
}

// What a dialog was closed with; "no" if somebody left it.
function answered(dialog) {
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

async function rename(run) {
  const reply = await ask("details", { run });
  if (reply.error) return say(reply.error, reply);
  const field = root.querySelector("#runs-title");
  field.value = reply.title;
  field.placeholder = reply.title ? "" : reply.label;
  const answer = answered(find("rename"));
  field.select();
  if ((await answer) === "yes") await change("rename", { run, title: field.value });
}

async function remove(run) {
  const reply = await ask("details", { run });
  if (reply.error) return say(reply.error, reply);
  if (reply.needed.length) return change("delete", { run }); // the server says why not
  find("goes").innerHTML = reply.goes;
  if ((await answered(find("delete"))) === "yes") await change("delete", { run });
}

async function send(run) {
  const form = root.querySelector("#runs-form");
  if ((await answered(find("export"))) === "yes") await change("export", { run, form: form.value });
}

// ---- curves

// Draws what is ticked; if that is too much, `added` is not ticked any more.
async function drawCurves(added) {
  const number = (draws += 1);
  const reply = await ask("curves", { runs: [...ticked], metric: metric.value });
  if (number !== draws || !element.isConnected) return;
  if (reply.error) {
    say(reply.error, reply);
    if (!reply.lost && ticked.delete(added)) checkBoxes();
    return;
  }
  const unfolded = find("curves").querySelector("details")?.open;
  if (put("curves", reply.html) && unfolded) find("curves").querySelector("details")?.setAttribute("open", "");
  find("choose").hidden = !ticked.size;
  const options = reply.metrics.map(([name, words]) => new Option(words, name));
  const known = [...metric.options].map((option) => option.value).join("\n");
  if (known !== reply.metrics.map(([name]) => name).join("\n")) metric.replaceChildren(...options);
  metric.value = reply.metric;
}

function tick(box) {
  if (box.checked) ticked.add(box.dataset.run);
  else ticked.delete(box.dataset.run);
  drawCurves(box.checked ? box.dataset.run : "");
}

// ---- clicks

const DOES = {
  open: (run) => (run === opened ? close() : open(run)),
  rename,
  drop: (run) => change("keep", { run, kept: false }),
  keep: (run) => change("keep", { run, kept: true }),
  delete: remove,
  export: send,
  untick: () => {
    ticked.clear();
    checkBoxes();
    drawCurves();
  },
};

root.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (button) DOES[button.dataset.do](button.dataset.run);
});
root.addEventListener("change", (event) => {
  if (event.target.dataset.do === "tick") tick(event.target);
  if (event.target === metric) drawCurves();
});

look();
