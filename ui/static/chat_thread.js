// One side of a conversation. It runs inside a gr.HTML for each side: `element` is its root, and
// `props.value` the messages as HTML that the server made safe. The left side can be edited.
// The value is not a part of the template, which would read `{{` in a message as its own.

const NEAR_END = 40; // pixels from the end at which a reader still follows the text
const thread = element.querySelector(".thread");
const field = () => document.querySelector("#chat-text textarea");
const IS_LEFT = thread.dataset.editable === "left"; // it has what both sides have once
const MESSAGE = "chat message"; // its draft
const ASK_AGAIN = [5000, 10000, 20000]; // milliseconds
let restored = false; // whether the message field has its draft
const heats = new Map(); // what the reward role likes in answers, as HTML
let editing = null; // {turn, text}: the message that is being written anew

function draw() {
  const follows = thread.scrollHeight - thread.scrollTop - thread.clientHeight < NEAR_END;
  thread.innerHTML = props.value || '<p class="faint">Write a message below.</p>';
  if (!props.value) heats.clear(); // a new conversation
  if (heats.size) drawHeats();
  if (follows) thread.scrollTop = thread.scrollHeight;
  if (IS_LEFT) dropSent();
  const message = editing && thread.querySelector(`.message.user[data-turn="${editing.turn}"]`);
  if (message && shownText(message) !== editing.text.trim()) edit(editing.turn, editing.text);
  else editing = null;
}

// The field comes back as it was left. It may be there a moment later than this side.
function restoreMessage() {
  if (!field()) return setTimeout(restoreMessage, 50);
  const kept = readDraft(MESSAGE)?.text;
  if (kept && !field().value) {
    field().value = kept;
    field().dispatchEvent(new Event("input", { bubbles: true }));
  }
  field().dir = "auto";
  restored = true;
}

// Gradio loses what is asked in the moment in which its stream of answers closes: if that was the
// page's own question for the models, it is asked again.
function askForModels() {
  if (!element.isConnected || document.querySelector("#chat-left-model input")?.value) return;
  trigger("tick");
  waitForModels();
}
function waitForModels() {
  if (ASK_AGAIN.length) setTimeout(askForModels, ASK_AGAIN.shift());
}

// The server empties the field when it has the message.
const dropSent = () => restored && setTimeout(() => field()?.value === "" && dropDraft(MESSAGE), 300);

const shownText = (message) => message.querySelector(".written")?.dataset.raw || "";

// The field stays until the message is the one that was written in it: the server may refuse it.
function edit(turn, text) {
  const message = thread.querySelector(`.message.user[data-turn="${turn}"]`);
  editing = message ? { turn, text } : null;
  if (!message) return;
  const form = document.createElement("form");
  form.innerHTML =
    `<textarea aria-label="Your message in other words" dir="auto" rows="3"></textarea>` +
    `<button type="submit">Submit</button> <button type="button">Cancel</button>`;
  const area = form.querySelector("textarea");
  area.value = text;
  area.addEventListener("input", () => (editing.text = area.value));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    trigger("edit", { turn, text: area.value });
  });
  form.querySelector("[type=button]").addEventListener("click", () => {
    editing = null;
    draw();
  });
  message.replaceChildren(form);
  area.focus();
}

async function copy(button) {
  const message = button.closest(".message");
  try {
    await navigator.clipboard.writeText(shownText(message));
    button.textContent = "Copied";
  } catch (error) {
    // Without https a page on another machine may not write there: select the text instead.
    getSelection().selectAllChildren(message.querySelector(".written"));
  }
}

// Each answer with all that its score depends on: the texts before it, and its own.
function answers() {
  const found = [];
  let key = "";
  for (const message of thread.querySelectorAll(".message")) {
    key += `${shownText(message)}\0`;
    if (message.matches(".bot")) found.push({ message, key });
  }
  return found;
}

// Only where the server offers it: a pair must not show it before its vote.
const judgeable = (message) => message.querySelector('[data-do="shares"]');
function drawHeats() {
  for (const { message, key } of answers())
    if (heats.has(key) && judgeable(message)) putHeat(message, heats.get(key));
}

function likes(button, message) {
  const { key } = answers().find((one) => one.message === message);
  const say = (text, reply) => {
    let said = message.querySelector(".said");
    if (!said) message.append((said = document.createElement("p")));
    said.className = "said faint";
    said.setAttribute("role", "status");
    said.textContent = text;
    if (reply.login) addLogin(said);
  };
  const asked = { turn: Number(message.dataset.turn), side: IS_LEFT ? 0 : 1 };
  askServer(button, () => server.shares(asked), say, (reply) => {
    heats.set(key, reply.html);
    // The thread may have been drawn anew in the meantime. Drawing it once more would take the
    // focus away and close what is open.
    const now = answers().find((one) => one.key === key)?.message;
    if (now && judgeable(now)) putHeat(now, reply.html);
    if (now) say("Shown below the answer.", {});
  });
}

if (!IS_LEFT) element.querySelector(".raw").remove();
thread.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const message = button?.closest(".message");
  if (button?.dataset.do === "copy") copy(button);
  if (button?.dataset.do === "shares") likes(button, message);
  if (button?.dataset.do !== "edit") return;
  edit(Number(message.dataset.turn), shownText(message));
});

// Gradio sends what is typed; if the login is lost, it says nothing of use.
async function checkLogin() {
  if (!element.isConnected || (await reach()) !== 401) return;
  const lost = element.querySelector(".lost");
  lost.textContent = LOGGED_OUT;
  addLogin(lost);
}
if (IS_LEFT) {
  restoreMessage();
  waitForModels();
  const asks = (event) =>
    event.type === "click"
      ? event.target.closest("#chat-send, #chat-retry, #chat-restart, #chat-votes button")
      : event.key === "Enter" && event.target.closest("#chat-text");
  document.addEventListener("click", (event) => asks(event) && checkLogin(), true);
  document.addEventListener("keydown", (event) => asks(event) && checkLogin(), true);
  document.addEventListener("input", ({ target }) => {
    if (target.closest("#chat-text")) keepDraft(MESSAGE, { text: target.value });
  });
}

watch("value", draw);
draw();
