// What runs and waits, and the form that starts more. The server sends each section as safe HTML; the
// page asks again every second while something goes on. It runs inside a gr.HTML: `element` is its
// root, `server` calls the page's Python functions.

const root = element.querySelector(".train");
const find = (name) => root.querySelector(`[data-part="${name}"]`);
const form = find("form");
const kind = form.querySelector("#train-kind");
const BUSY_MS = 1000;
const IDLE_MS = 5000;
const RETRY_MS = 1500;
const TYPED_MS = 800; // after the last key, before memory and time are estimated

// ---- where everything stands

let looks = 0; // replies to earlier questions are not shown
const shown = new Map(); // the HTML of each section, which is drawn only when it changes

async function look() {
  const number = (looks += 1);
  const reply = document.hidden ? null : await replyOf(server.look({}));
  if (number !== looks || !element.isConnected) return;
  if (reply) draw(reply);
  if (reply?.login) return;
  const pause = reply?.error ? RETRY_MS : reply && !reply.busy ? IDLE_MS : BUSY_MS;
  setTimeout(() => number === looks && look(), pause);
}

function draw(reply) {
  say(find("status"), reply.error || "", reply);
  if (reply.error) return;
  for (const [name, html] of Object.entries(reply.sections)) put(name, html);
  find("earlier-section").hidden = !reply.sections.earlier;
}

// Draws a section, if it has changed; a button that had the focus keeps it.
function put(name, html) {
  if (html === shown.get(name)) return;
  shown.set(name, html);
  const place = find(name);
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset : {};
  place.innerHTML = html;
  (root.querySelector(`[data-box="${name}"]`) || place).hidden = !html;
  if (focused.do)
    place.querySelector(`[data-do="${focused.do}"][data-job="${focused.job}"]`)?.focus({ preventScroll: true });
}

// A screen reader says a status whenever it is written, so the same text is not written again.
function say(place, text, reply = {}) {
  if (place.dataset.text === text) return;
  place.dataset.text = text;
  place.textContent = text;
  if (reply.login) addLogin(place);
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  const { do: action, job, round } = button.dataset;
  const tell = (text, reply) => say(find("answer"), text, reply);
  askServer(button, () => server[action]({ job: Number(job), round: Number(round) }), tell, drawAnew);
});

const said = form.querySelector(".said");
const sayBelow = (text, reply) => say(said, text, reply);

function drawAnew(reply) {
  draw(reply);
  looks += 1; // the reply is newer than what is on its way
  setTimeout(look, BUSY_MS);
}

// ---- the form

const fields = () => form.querySelector(`[data-kind="${kind.value}"]`);
const typed = () =>
  Object.fromEntries([...fields().querySelectorAll("input")].map((field) => [field.name, field.value.trim()]));
const chosen = () => ({ kind: kind.value, settings: typed(), anyway: form.elements.anyway.checked });

let estimates = 0;
async function estimate() {
  const number = (estimates += 1);
  const place = find("estimate");
  say(place, "Estimating memory and time …");
  for (;;) {
    const reply = await replyOf(server.estimate(chosen()));
    if (number !== estimates || !element.isConnected) return;
    if (!reply.busy) return showEstimate(place, reply);
    await new Promise((done) => setTimeout(done, BUSY_MS));
    if (number !== estimates) return;
  }
}

function showEstimate(place, reply) {
  if (reply.error) return say(place, reply.error, reply);
  place.dataset.text = "";
  place.innerHTML = reply.html;
  for (const field of fields().querySelectorAll("input")) {
    if (!field.value && field.name in reply.values) field.placeholder = reply.values[field.name];
  }
}

let typing = 0;
form.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(estimate, TYPED_MS);
});
form.addEventListener("focusin", estimate, { once: true });
kind.addEventListener("change", () => {
  for (const group of form.querySelectorAll("fieldset")) group.hidden = group.dataset.kind !== kind.value;
});
find("measure").addEventListener("click", estimate);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  askServer(form.querySelector("[type=submit]"), () => server.start(chosen()), sayBelow, (reply) => {
    sayBelow("Started. It goes on if you close this page.", {});
    drawAnew(reply);
  });
});
find("tonight").addEventListener("click", (event) => {
  askServer(event.target, () => server.tonight({}), sayBelow, (reply) => {
    sayBelow("The round is started. It goes on if you close this page.", {});
    drawAnew(reply);
  });
});

look();
