// The widget that shows an item and takes a vote; the collect page and the taste test share it.
// It runs inside a gr.HTML: `element` is its root, `server` calls the page's Python functions.

const root = element.querySelector(".judge");
const find = (name) => root.querySelector(`[data-part="${name}"]`);
const LETTERS = "ABCDEF";
const DOUBLE_CLICK_MS = 300; // a second click so soon was meant for the pair that is gone
const RETRY_MS = 1500;

let view = null; // what the server told last
let shownAt = 0;
let busy = false;
let waiting = false;
let lastVote = null; // what undo takes back, as the server told it
let asked = 0; // answers to older questions than the last action tell nothing any more
let strength = null;
let ranking = []; // {place, tied}; places after `cut` are not ranked
let cut = 0;
let picked = 0; // places that were put in order by number keys
let confirmed = false; // a ranking that nobody changed is sent at the second try

// ---- talking to the server

// The same question again until the server answers: a vote's token makes a second one harmless.
async function call(name, data) {
  for (let refused = 0; ; ) {
    try {
      const answer = await server[name](data);
      if (answer === undefined || answer === null) throw new Error("no answer");
      tell("");
      return answer;
    } catch (error) {
      const status = await reach();
      if (status === 401) return { error: "You are not logged in any more. Reload the page." };
      if (status) refused += 1;
      if (refused > 2)
        return { error: "The server refuses this. Reload the page; votes up to now are kept." };
      if (!status)
        tell("The server does not answer. Votes up to now are kept; trying again …", "warn");
      await pause(RETRY_MS);
    }
  }
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Ask, and show what comes of it; whether it was done.
async function go(name, data) {
  if (busy) return false;
  busy = true;
  asked += 1;
  root.setAttribute("aria-busy", "true");
  const told = await call(name, data);
  busy = false;
  root.removeAttribute("aria-busy");
  if (told.error) {
    if (told.reload) show(told.reload);
    tell(told.error, "warn");
    if (view?.streaming) watchMore();
    return false;
  }
  show(told);
  return true;
}

// ---- drawing

function show(told) {
  // Answers that were written live get another token at their end.
  const same = view && told.answers && [told.token, told.was].includes(view.token);
  view = told;
  about(told);
  const empty = told.empty || told.wait || "";
  find("empty").textContent = empty;
  find("empty").hidden = !empty;
  find("item").hidden = !told.answers;
  find("back").hidden = !told.empty || lastVote === null;
  if (told.wait && !waiting) {
    waiting = true;
    setTimeout(() => {
      waiting = false;
      go("begin", {});
    }, 1000 * (told.after || 1));
  }
  if (!told.answers) return;
  root.dataset.count = told.answers.length;
  root.dataset.streaming = told.streaming ? "yes" : "no";
  find("prompt").innerHTML = told.prompt;
  draw(told.answers);
  root.dataset.token = told.token;
  if (!same) start(told.answers.length);
  if (told.streaming) watchMore();
}

// A new item: nothing of the last one is left over.
function start(count) {
  shownAt = performance.now();
  choose(null);
  find("note").value = "";
  find("edited").value = "";
  find("more").open = false;
  ranking = Array.from({ length: count }, (_, place) => ({ place, tied: false }));
  cut = count;
  picked = 0;
  confirmed = false;
  find("ranking").replaceChildren();
  drawRanking();
  for (const card of root.querySelectorAll(".answer")) card.classList.remove("open");
  fold();
}

function draw(answers) {
  const grid = find("answers");
  while (grid.children.length > answers.length) grid.lastElementChild.remove();
  answers.forEach((answer, place) => {
    const card = grid.children[place] || grid.appendChild(makeCard(place));
    card.querySelector(".body").innerHTML = answer.html || "<p class='faint'>…</p>";
    card.querySelector(".flag").hidden = !answer.flag;
  });
  fold();
}

function makeCard(place) {
  const card = document.createElement("article");
  card.className = "answer";
  card.setAttribute("aria-label", `Answer ${LETTERS[place]}`);
  card.innerHTML =
    `<header><span class="letter">${LETTERS[place]}</span>` +
    `<button type="button" class="quiet edit">Edit a copy</button></header>` +
    `<p class="flag" hidden>This answer names its maker. Skip it if that sways you.</p>` +
    `<div class="body"></div><button type="button" class="quiet unfold" hidden>Show all</button>`;
  card.querySelector(".unfold").addEventListener("click", () => {
    card.classList.toggle("open");
    fold();
    card.scrollIntoView({ block: "nearest" });
  });
  card.querySelector(".edit").addEventListener("click", () => {
    find("more").open = true;
    find("edited").value = view.answers[place].text;
    find("edited").focus();
  });
  return card;
}

function fold() {
  for (const card of root.querySelectorAll(".answer")) {
    const [body, unfold] = [card.querySelector(".body"), card.querySelector(".unfold")];
    const open = card.classList.contains("open");
    const long = !open && body.scrollHeight > body.clientHeight + 8;
    unfold.hidden = !long && !open;
    unfold.textContent = open ? "Show less" : "Show all";
    card.classList.toggle("long", long);
  }
}

function about(told) {
  if (told.last !== undefined) lastVote = told.last;
  if (typeof told.progress === "string") find("progress").textContent = told.progress;
  else if (told.progress) {
    const { today, all, hour } = told.progress;
    find("progress").textContent = `${today} today · ${all} in all · ${hour} in the last hour`;
  }
  if (told.score !== undefined) find("meter").textContent = told.score;
  if (told.meter) drawMeter(told.meter);
}

function drawMeter(meter) {
  const percent = (share) => `${Math.round(100 * share)}%`;
  const bar = find("bar");
  bar.hidden = !meter.guesses;
  if (!meter.guesses) {
    find("meter").textContent = "After a few votes this shows how often your next one is foreseen.";
    return;
  }
  find("meter").textContent =
    `Learned from ${meter.votes} votes, the reward head foresaw ${percent(meter.right)} ` +
    `(${percent(meter.low)} to ${percent(meter.high)}) of your last ${meter.guesses} · ` +
    `“the longer one” ${percent(meter.longer)} · chance ${percent(meter.chance)}`;
  bar.querySelector(".range").style.left = percent(meter.low);
  bar.querySelector(".range").style.width = percent(meter.high - meter.low);
  bar.querySelector(".point").style.left = percent(meter.right);
  bar.querySelector(".chance").style.left = percent(meter.chance);
}

function tell(text, kind) {
  const place = find("status");
  if (place.textContent !== text) place.textContent = text;
  place.dataset.kind = kind || "";
}

// One loop for the answers that are being written, until they end or something else is shown.
let watched = "";
async function watchMore() {
  const token = view.token;
  if (watched === token) return;
  watched = token;
  while (view.token === token && view.streaming) {
    const told = await call("watch", { seen: view.seen });
    if (view.token !== token) break; // voted in the meantime
    if (told.error) tell(told.error, "warn");
    if (told.error) break;
    if (busy) await pause(100); // what was sent decides what is shown
    else show(told);
  }
  if (watched === token) watched = "";
}

// ---- voting

const READY = () => view && view.answers && !busy && performance.now() - shownAt > DOUBLE_CLICK_MS;

function send(said) {
  if (!READY()) return;
  tell("");
  const more = { strength, note: find("note").value, edited: find("edited").value };
  const milliseconds = Math.round(performance.now() - shownAt);
  go("vote", { token: view.token, said: { ...said, ...more }, milliseconds });
}

function prefer(place) {
  const places = view.answers.map((_, n) => n).filter((n) => n !== place);
  send({ verdict: "ranked", ranking: [[place], places] });
}

function sendRanking() {
  if (!READY()) return;
  const untouched = ranking.every((row, n) => row.place === n && !row.tied);
  if (untouched && cut === ranking.length && !confirmed) {
    confirmed = true;
    tell("This is the order in which they were shown. Send it once more if you mean it.", "warn");
    return;
  }
  const tiers = [];
  ranking.slice(0, cut).forEach((row, n) => {
    if (row.tied && n) tiers[tiers.length - 1].push(row.place);
    else tiers.push([row.place]);
  });
  if (!tiers.length) return tell("Put at least one answer above the line.", "warn");
  if (tiers.length === 1 && tiers[0].length === ranking.length) send({ verdict: "tie" });
  else send({ verdict: "ranked", ranking: tiers });
}

function undo() {
  if (lastVote !== null) go("undo", { expected: lastVote });
  else if (!busy) tell("There is no vote of yours to take back.", "warn");
}

function choose(name) {
  strength = name === strength ? null : name;
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
    if (!text.trim()) return tell("Type a prompt first.", "warn");
    while (busy) await pause(50); // a question whether there is something to rate now
    if ((await go("ask", { text })) && find("own").value === text) find("own").value = "";
  },
};
for (const button of root.querySelectorAll("[data-do]"))
  button.addEventListener("click", () => ACTIONS[button.dataset.do]());
for (const button of root.querySelectorAll("[data-strength]"))
  button.addEventListener("click", () => choose(button.dataset.strength));

// ---- ranking

// The row that has the focus, or the finger, never leaves the page: a finger loses what it holds
// when the element under it is taken away. The others are put around it.
function drawRanking(focus) {
  const list = find("ranking");
  const order = rows();
  const items = order.map(
    (place) => list.querySelector(`[data-place="${place}"]`) || makeRow(place),
  );
  const fixed = Math.max(0, order.indexOf(focus));
  if (!list.contains(items[fixed])) list.append(items[fixed]);
  items.forEach((item, n) => {
    if (n < fixed) list.insertBefore(item, items[fixed]);
    if (n > fixed) list.append(item);
  });
  ranking.forEach((row, n) => describe(list.querySelector(`[data-place="${row.place}"]`), row, n));
  if (focus !== undefined) items[fixed].focus();
}

function makeRow(place) {
  const item = document.createElement("li");
  item.tabIndex = 0;
  item.dataset.place = place;
  if (place === "line") {
    item.className = "divider";
    item.textContent = "not ranked below this line";
    item.setAttribute("aria-label", "Line: what is below it is not ranked. Arrow keys move it.");
  } else {
    item.innerHTML =
      `<span class="grip" aria-hidden="true">⠿</span><b>${LETTERS[place]}</b>` +
      `<span class="rank"></span><button type="button" class="quiet tie" tabindex="-1">=</button>`;
    item.querySelector(".tie").addEventListener("click", () => tie(place));
  }
  item.addEventListener("keydown", (event) => chipKey(event, place));
  item.addEventListener("pointerdown", (event) => drag(event, place));
  return item;
}

function describe(item, row, n) {
  const [unranked, tied] = [n >= cut, n < cut && n > 0 && row.tied];
  const rank = unranked ? "not ranked" : tied ? "as good as the one above" : `${n + 1}.`;
  const letter = LETTERS[row.place];
  item.classList.toggle("unranked", unranked);
  item.classList.toggle("tied", tied);
  item.setAttribute("aria-label", `Answer ${letter}, ${rank}. Arrow keys move it, = ties it.`);
  item.querySelector(".rank").textContent = rank;
  const button = item.querySelector(".tie");
  button.hidden = !n || unranked;
  button.setAttribute("aria-label", `Answer ${letter} is as good as the one above`);
  button.setAttribute("aria-pressed", String(tied));
}

// Rows as they stand on the screen, the line among them.
function rows() {
  const whole = ranking.map((row) => row.place);
  whole.splice(cut, 0, "line");
  return whole;
}

function arrange(order) {
  const ties = new Map(ranking.map((row) => [row.place, row.tied]));
  cut = order.indexOf("line");
  ranking = order.filter((p) => p !== "line").map((place) => ({ place, tied: ties.get(place) }));
  if (ranking.length) ranking[0].tied = false;
}

function move(place, step) {
  const order = rows();
  const from = order.indexOf(place);
  const to = Math.max(0, Math.min(order.length - 1, from + step));
  order.splice(to, 0, order.splice(from, 1)[0]);
  const row = ranking.find((known) => known.place === place);
  if (row) row.tied = false;
  arrange(order);
  picked = 0;
  drawRanking(place);
}

function tie(place) {
  const n = ranking.findIndex((row) => row.place === place);
  if (n < 1 || n >= cut) return;
  ranking[n].tied = !ranking[n].tied;
  drawRanking(ranking[n].place);
}

function chipKey(event, place) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = { ArrowUp: -1, ArrowDown: 1 };
  if (event.key in steps) move(place, steps[event.key]);
  else if (event.key === "=") tie(place);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

// Number keys from the best to the worst.
function pick(place) {
  const order = rows();
  const from = order.indexOf(place);
  if (from < picked) return;
  order.splice(picked, 0, order.splice(from, 1)[0]);
  picked += 1;
  arrange(order);
  drawRanking();
}

function drag(event, place) {
  if (event.target.closest("button")) return;
  event.preventDefault();
  const list = find("ranking");
  const dragged = event.currentTarget;
  const follow = (moved) => {
    const order = rows();
    const from = order.indexOf(place);
    const others = [...list.children].filter((child) => child.dataset.place !== String(place));
    const above = others.filter((child) => {
      const box = child.getBoundingClientRect();
      return box.top + box.height / 2 < moved.clientY;
    }).length;
    if (above === from) return;
    order.splice(above, 0, order.splice(from, 1)[0]);
    arrange(order);
    picked = 0;
    drawRanking(place);
  };
  const end = () => {
    document.removeEventListener("pointermove", follow);
    document.removeEventListener("pointerup", end);
    document.removeEventListener("pointercancel", end);
    dragged.classList.remove("dragged");
    drawRanking(place);
  };
  document.addEventListener("pointermove", follow);
  document.addEventListener("pointerup", end);
  document.addEventListener("pointercancel", end);
  dragged.classList.add("dragged");
}

// ---- keys

const PAIR_KEYS = { 1: "first", 2: "second", ArrowLeft: "first", ArrowRight: "second" };
const KEYS = { t: "tie", g: "both_good", b: "both_bad", s: "skip", u: "undo" };
const STRENGTHS = { q: "slightly", w: "clearly", e: "much" };

function typed(event) {
  if (!root.isConnected) return;
  const target = event.target;
  if (event.key === "Escape" && root.contains(target)) return target.blur();
  const writing = target.closest("input, textarea, select, [contenteditable='true']");
  if (writing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const onButton = target.closest("button, a, summary, [role='tab']");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const many = view && view.answers && view.answers.length > 2;
  if (key === "Enter" && (!many || onButton)) return;
  if (key === "Enter") sendRanking();
  else if (key in STRENGTHS) choose(STRENGTHS[key]);
  else if (key in KEYS) ACTIONS[KEYS[key]]();
  else if (many && /^[1-6]$/.test(key) && key <= view.answers.length) pick(key - 1);
  else if (!many && key in PAIR_KEYS) ACTIONS[PAIR_KEYS[key]]();
  else if (key === "n") openNote("note");
  else if (key === "p" && find("own")) openNote("own");
  else return;
  event.preventDefault();
}

function openNote(name) {
  find(name).closest("details").open = true;
  find(name).focus();
}

document.addEventListener("keydown", typed);
window.addEventListener("resize", fold);
find("own")?.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ACTIONS.ask();
});

// The meter is fitted in the background; its figure comes a moment after the vote.
setInterval(async () => {
  if (busy || document.hidden || !root.isConnected || !root.dataset.token) return;
  const before = asked;
  try {
    const told = await server.progress({});
    if (told && !told.error && before === asked) about(told);
  } catch (error) {
    // The next vote will tell.
  }
}, 3000);

root.addEventListener("again", () => go("begin", {})); // a taste test was started beside it
go("begin", {});
