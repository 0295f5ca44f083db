// The widget that shows an item and takes a vote, for the Rate page and the Compare page.
// It runs inside a gr.HTML: `element` is its root, `server` calls the page's Python functions.
// Before it come drafts.js, raw.js, vote_cards.js (the answers) and vote_ranking.js (the rows with
// which three or more of them are ranked).

const root = element.querySelector(".vote-widget");
const find = (name) => root.querySelector(`[data-part="${name}"]`);
const DOUBLE_CLICK_MS = 300; // a second click so soon was meant for the item before
const RETRY_MS = 1500;

let view = null; // the last reply that is shown
let shownAt = 0;
let busy = false;
let waiting = false;
let lastVote = null; // the number of the vote that undo will undo
let actions = 0; // replies to requests from before the last action are outdated
let strength = null;

// ---- requests to the server

// Repeats a request until the server answers. A vote's token makes a repeated vote harmless.
async function call(name, data) {
  for (let refused = 0; ; ) {
    try {
      const answer = await server[name](data);
      if (answer === undefined || answer === null) throw new Error("no answer");
      if (find("status").dataset.kind === "trouble") showStatus("");
      return answer;
    } catch (error) {
      const status = await reach();
      if (status === 401) return { error: LOGGED_OUT, login: true };
      if (status) refused += 1;
      if (refused > 2)
        return { error: "The server refuses this request. Reload the page; your votes are saved." };
      if (!status)
        showStatus("The server does not answer. Your votes are saved; trying again …", "trouble");
      await pause(RETRY_MS);
    }
  }
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Send a request and show the reply. Returns whether it succeeded.
async function go(name, data) {
  if (busy) return false;
  busy = true;
  actions += 1;
  root.setAttribute("aria-busy", "true");
  const reply = await call(name, data);
  busy = false;
  root.removeAttribute("aria-busy");
  if (reply.error) {
    if (reply.reload) show(reply.reload);
    showStatus(reply.error, "warn");
    if (reply.login) addLogin(find("status"));
    else if (view?.streaming) watch();
    return false;
  }
  show(reply);
  if (reply.notice) showStatus(reply.notice, "warn");
  else if (name !== "begin") showStatus("");
  return true;
}

// ---- drawing

function show(reply) {
  // Live answers get another token when they are complete.
  const same = view && reply.answers && [reply.token, reply.was].includes(view.token);
  view = reply;
  if (reply.last !== undefined) lastVote = reply.last;
  showProgress(reply);
  const empty = reply.empty || reply.wait || "";
  find("empty").textContent = empty;
  find("empty").hidden = !empty;
  find("item").hidden = !reply.answers;
  find("back").hidden = !reply.empty || lastVote === null;
  if (reply.wait && !waiting) {
    waiting = true;
    setTimeout(() => {
      waiting = false;
      go("begin", {});
    }, 1000 * (reply.after || 1));
  }
  if (!reply.answers) return;
  root.dataset.count = reply.answers.length;
  root.dataset.streaming = reply.streaming ? "yes" : "no";
  find("prompt").innerHTML = reply.prompt;
  draw(reply.answers);
  const early = isEarly();
  for (const button of root.querySelectorAll("[data-do]"))
    if (NEED_TEXT.includes(button.dataset.do)) button.disabled = early;
  root.dataset.token = reply.token;
  if (!same) start(reply.answers.length);
  if (reply.was) moveDraft(reply.was, reply.token);
  if (reply.streaming) watch();
}

// Reset everything that belonged to the item before, and bring back what was typed for this one.
function start(count) {
  shownAt = performance.now();
  const typed = readDraft(view.token) || readDraft(view.was) || view.draft || {};
  find("note").value = typed.note || "";
  find("edited").value = typed.edited || "";
  find("more").open = Boolean(typed.note || typed.edited);
  strength = null;
  choose(typed.strength || null);
  startRanking(count);
  startCards();
}

function showProgress(reply) {
  if (typeof reply.progress === "string") find("progress").textContent = reply.progress;
  else if (reply.progress) {
    const { today, hour } = reply.progress;
    find("progress").textContent = `${goalLine(reply.goal)} · ${today} today · ${hour} in the last hour`;
    find("welcome").hidden = reply.goal.votes > 0;
  }
  if (reply.meter) drawMeter(reply.meter);
  if (reply.rests !== undefined) {
    find("rests").textContent = reply.rests;
    find("rests").hidden = !reply.rests || Boolean(view?.wait); // then it stands below already
  }
}

function goalLine(goal) {
  if (goal.of) return `${goal.votes} of ${goal.of} votes`;
  return `${goal.reached} votes reached`;
}

function drawMeter(meter) {
  const percent = (share) => `${Math.round(100 * share)}%`;
  const bar = find("bar");
  bar.hidden = !meter.guesses;
  if (!meter.guesses) {
    find("meter").textContent = "After a few votes, this shows how often your next vote is predicted correctly.";
    return;
  }
  const sure = meter.sure
    ? `; of the ${meter.sure} sure prediction${meter.sure === 1 ? "" : "s"}, ` +
      `${percent(meter.sure_right)} ${meter.sure === 1 ? "was" : "were"} correct ` +
      `(${percent(meter.sure_low)} to ${percent(meter.sure_high)})`
    : "";
  find("meter").textContent =
    `${percent(meter.right)} of your last ${meter.guesses} votes were predicted correctly ` +
    `(${percent(meter.low)} to ${percent(meter.high)})${sure}. Guessing gets ` +
    `${percent(meter.chance)}, “the longer one” ${percent(meter.longer)}. ${meter.more || ""}`;
  bar.querySelector(".range").style.left = percent(meter.low);
  bar.querySelector(".range").style.width = percent(meter.high - meter.low);
  bar.querySelector(".point").style.left = percent(meter.right);
  bar.querySelector(".chance").style.left = percent(meter.chance);
}

function showStatus(text, kind) {
  const status = find("status");
  if (status.textContent !== text) status.textContent = text;
  status.dataset.kind = kind || "";
}

// Follow live answers until they are complete or something else is shown.
let watched = "";
async function watch() {
  const token = view.token;
  if (watched === token) return;
  watched = token;
  while (view.token === token && view.streaming) {
    const reply = await call("watch", { seen: view.seen });
    if (view.token !== token) break; // the rater voted in the meantime
    if (reply.error) {
      showStatus(reply.error, "warn");
      if (reply.login) addLogin(find("status"));
      break;
    }
    if (busy) await pause(100); // the reply to that request decides what is shown
    else show(reply);
  }
  if (watched === token) watched = "";
}

// ---- drafts

const typedFields = () => ({ strength, note: find("note").value, edited: find("edited").value });
const keepTyped = () => view?.answers && keepDraft(view.token, typedFields());

// Live answers have become an item.
function moveDraft(from, to) {
  if (!readDraft(from)) return;
  keepDraft(to, readDraft(from));
  dropDraft(from);
}

for (const name of ["note", "edited"]) find(name).addEventListener("input", keepTyped);

// ---- voting

const READY = () => view && view.answers && !busy && performance.now() - shownAt > DOUBLE_CLICK_MS;
const NEED_TEXT = ["first", "second", "rank", "tie", "both_good", "both_bad"];
const isEarly = () => Boolean(view.streaming) && view.answers.some((answer) => !answer.text.trim());

async function send(verdict) {
  if (!READY()) return;
  if (isEarly() && verdict.verdict !== "skip")
    return showStatus("An answer is still empty. Wait for its text, or skip.", "warn");
  showStatus("");
  const { token } = view;
  const milliseconds = Math.round(performance.now() - shownAt);
  const vote = { ...verdict, ...typedFields() };
  if (await go("vote", { token, vote, milliseconds })) dropDraft(token);
}

function prefer(position) {
  const others = view.answers.map((_, n) => n).filter((n) => n !== position);
  send({ verdict: "ranked", ranking: [[position], others] });
}

function sendRanking() {
  if (!READY()) return;
  const { problem, tiers } = readRanking();
  if (problem) showStatus(problem, "warn");
  else if (tiers.length === 1 && tiers[0].length === view.answers.length) send({ verdict: "tie" });
  else send({ verdict: "ranked", ranking: tiers });
}

function undo() {
  if (lastVote !== null) go("undo", { expected: lastVote });
  else if (!busy) showStatus("You have no vote to undo.", "warn");
}

function choose(name) {
  strength = name === strength ? null : name;
  keepTyped();
  for (const button of root.querySelectorAll("[data-strength]"))
    button.setAttribute("aria-pressed", String(button.dataset.strength === strength));
}

const ACTIONS = {
  tie: () => send({ verdict: "tie" }),
  both_good: () => send({ verdict: "both_good" }),
  both_bad: () => send({ verdict: "both_bad" }),
  skip: () => send({ verdict: "skip" }),
  first: () => prefer(0),
  second: () => prefer(1),
  rank: sendRanking,
  undo,
  ask: async () => {
    const text = find("own").value;
    if (!text.trim()) return showStatus("Type a prompt first.", "warn");
    while (busy) await pause(50); // the page may be checking for new items
    if (!(await go("ask", { text })) || find("own").value !== text) return;
    find("own").value = "";
    dropDraft("own prompt");
  },
};
for (const button of root.querySelectorAll("[data-do]"))
  button.addEventListener("click", () => ACTIONS[button.dataset.do]());
for (const button of root.querySelectorAll("[data-strength]"))
  button.addEventListener("click", () => choose(button.dataset.strength));

// ---- keys

const PAIR_KEYS = { 1: "first", 2: "second", ArrowLeft: "first", ArrowRight: "second" };
const KEYS = { t: "tie", g: "both_good", b: "both_bad", s: "skip", u: "undo" };
const STRENGTHS = { q: "slightly", w: "clearly", e: "much" };

function onKey(event) {
  if (!root.isConnected) return;
  const target = event.target;
  if (event.key === "Escape" && root.contains(target)) return target.blur();
  const typing = target.closest("input, textarea, select, [contenteditable='true']");
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const onButton = target.closest("button, a, summary, [role='tab']");
  const key = keyOf(event);
  const many = view && view.answers && view.answers.length > 2;
  if (key === "Enter" && (!many || onButton)) return;
  if (key === "Enter") sendRanking();
  else if (key in STRENGTHS) choose(STRENGTHS[key]);
  else if (key in KEYS) ACTIONS[KEYS[key]]();
  else if (many && /^[1-6]$/.test(key) && key <= view.answers.length) pick(key - 1);
  else if (!many && key in PAIR_KEYS) ACTIONS[PAIR_KEYS[key]]();
  else if (key === "n") openField("note");
  else if (key === "p" && find("own")) openField("own");
  else return;
  event.preventDefault();
}

function openField(name) {
  find(name).closest("details").open = true;
  find(name).focus();
}

document.addEventListener("keydown", onKey);
window.addEventListener("resize", fold);
find("own")?.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ACTIONS.ask();
});

// The meter is fitted in the background, so its figure changes a moment after the vote. The vote to
// undo stays the one that this tab saw: another tab may have voted since.
setInterval(async () => {
  if (busy || document.hidden || !root.isConnected || !root.dataset.token) return;
  const before = actions;
  try {
    const reply = await server.progress({});
    if (reply && !reply.error && before === actions) showProgress(reply);
  } catch (error) {
    // The next vote will show whether the server is there.
  }
}, 3000);

if (find("own")) draftField(find("own"), "own prompt");
root.addEventListener("reload", () => go("begin", {})); // a blind comparison was started
go("begin", {});
