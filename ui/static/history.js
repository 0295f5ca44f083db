// The list of votes: filters, pages, the details of one vote at a time, and its correction.
// It runs inside a gr.HTML: `element` is its root, `server` calls the page's Python functions.
// Text of raters and models is inserted as text; only HTML that the server made safe as markup.

const root = element.querySelector(".history");
const find = (name) => root.querySelector(`[data-part="${name}"]`);
const filter = find("filter");
const list = find("rows");
const LETTERS = "ABCDEF";
const FIELDS = ["ranking", "strength", "note", "edited"];
const TYPING_MS = 300;
const RETRY_MS = 1500;
const NO_ANSWER = "The server does not answer. Your votes are saved; trying again …";

let start = 0;
let searched = ""; // the last search
let searches = 0; // replies to earlier searches are not shown
let opened = null; // the row whose details are shown

// ---- requests to the server

// Repeats a read until the server answers or its result is not `wanted` any more.
async function read(name, data, wanted) {
  while (wanted()) {
    try {
      const answer = await server[name](data);
      if (answer) return answer;
    } catch (error) {
      // Handled below, as a missing answer.
    }
    if ((await reach()) === 401) return { error: LOGGED_OUT, login: true };
    if (wanted()) showStatus(NO_ANSWER, "warn");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
  return null;
}

async function write(name, data) {
  try {
    const answer = await server[name](data);
    if (answer) return answer;
  } catch (error) {
    // Handled below, as a missing answer.
  }
  if ((await reach()) === 401) return { error: LOGGED_OUT, login: true };
  return { error: "The server does not answer. Open the vote again to see what was saved." };
}

function showStatus(text, kind) {
  find("status").textContent = text;
  find("status").dataset.kind = kind || "";
}

function showProblem(reply) {
  showStatus(reply.error, "warn");
  if (reply.login) addLogin(find("status"));
}

// ---- the list

async function search(from, message) {
  const number = (searches += 1);
  const data = { ...Object.fromEntries(new FormData(filter)), start: from };
  if (find("whose").hidden) data.scope = "visible"; // until the server says whose votes one may see
  searched = JSON.stringify(data);
  list.setAttribute("aria-busy", "true");
  const reply = await read("search", data, () => number === searches);
  if (!reply || number !== searches) return;
  list.removeAttribute("aria-busy");
  if (reply.error) return showProblem(reply);
  start = reply.start;
  find("whose").hidden = !reply.everybody;
  drawRows(reply.rows, reply.rater);
  const last = start + reply.rows.length;
  const range = reply.total ? `Votes ${start + 1} to ${last} of ${reply.total.toLocaleString("en")}` : "";
  showStatus(message || (range ? `${range}, the newest first.` : nothing(reply)));
  find("pager").hidden = reply.total <= reply.page;
  find("newer").disabled = start === 0;
  find("older").disabled = last >= reply.total;
  const pages = Math.ceil(reply.total / reply.page);
  find("page").textContent = `Page ${start / reply.page + 1} of ${pages}`;
  find("newer").onclick = () => turn(start - reply.page);
  find("older").onclick = () => turn(start + reply.page);
}

// Rows that are there already stay the same elements: one may be open, or under a finger.
function drawRows(rows, rater) {
  const known = new Map([...list.children].map((item) => [item.dataset.id, item]));
  const items = rows.map((row) => known.get(String(row.id)) || makeRow(row, rater));
  items.forEach((item, place) => fill(item, rows[place], rater));
  for (const item of known.values()) if (!items.includes(item)) item.remove();
  items.forEach((item, place) => {
    if (list.children[place] !== item) list.insertBefore(item, list.children[place] || null);
  });
  if (opened && !items.includes(opened)) opened = null;
}

function nothing(reply) {
  const fields = Object.entries(Object.fromEntries(new FormData(filter)));
  const filtered = fields.some(([name, value]) => value && name !== "scope");
  if (filtered) return "No votes match. Change the filters above.";
  const others = reply.everybody && filter.elements.scope.value === "mine";
  return `There are no votes${others ? " of yours" : ""} yet.` + (others ? " Choose all votes above." : "");
}

async function turn(from) {
  await search(from);
  const first = list.querySelector("button");
  if (first) first.focus();
  root.scrollIntoView({ block: "start" });
}

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function makeRow(row, rater) {
  const item = make("li");
  item.dataset.id = row.id;
  const button = make("button");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.append(make("span", "verdict"), make("span", "question"), make("span", "about"));
  button.querySelector(".question").dir = "auto";
  button.addEventListener("click", () => (item === opened ? close() : open(item)));
  item.append(button);
  fill(item, row, rater);
  return item;
}

function fill(item, row, rater) {
  item.dataset.rater = rater;
  item.querySelector(".verdict").textContent = row.summary;
  item.querySelector(".question").textContent = row.prompt || "(an empty prompt)";
  const about = [when(row.when)];
  if (row.rater !== rater) about.push(row.rater);
  if (row.imported && row.rater !== "imported") about.push("imported");
  if (row.purpose === "compare") about.push("blind comparison");
  if (row.noted) about.push("note");
  if (row.edited) about.push("better answer");
  item.querySelector(".about").textContent = about.join(" · ");
}

function when(milliseconds) {
  const date = new Date(milliseconds);
  if (Number.isNaN(date.getTime())) return "at an unknown time";
  return date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

function duration(milliseconds) {
  const seconds = Math.round(milliseconds / 1000);
  if (seconds < 60) return `${seconds} s`;
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

// ---- one vote

function close() {
  if (!opened) return;
  opened.querySelector("button").setAttribute("aria-expanded", "false");
  opened.querySelector(".details")?.remove();
  opened = null;
}

async function open(item) {
  close();
  opened = item;
  item.querySelector("button").setAttribute("aria-expanded", "true");
  const reply = await read("open", { id: Number(item.dataset.id) }, () => opened === item);
  if (!reply || opened !== item) return;
  if (reply.error) {
    close();
    return showProblem(reply);
  }
  draw(item, reply);
}

function draw(item, vote) {
  item.querySelector(".details")?.remove();
  const details = find("details").content.firstElementChild.cloneNode(true);
  const part = (name) => details.querySelector(name);
  part(".facts").textContent = facts(vote);
  part(".prompt").innerHTML = vote.prompt;
  vote.answers.forEach((answer, position) => part(".answers").append(makeCard(answer, position)));
  part(".liked").hidden = !vote.liked;
  part(".liked button").addEventListener("click", () => askLiked(part(".liked"), vote, item));
  if (vote.edited) {
    part(".edited").hidden = false;
    part(".edited .text").innerHTML = vote.edited_html;
  }
  part(".noted").hidden = !vote.note;
  part(".note").textContent = vote.note;
  if (vote.yours) prepare(part("form"), vote, item);
  part(".change").hidden = !vote.yours;
  part(".read-only").hidden = vote.yours;
  part(".read-only").textContent = `This is ${vote.rater}'s vote; only ${vote.rater} can change it.`;
  item.append(details);
}

function askLiked(line, vote, item) {
  const say = (text, reply) => {
    line.querySelector(".said").textContent = text;
    if (reply.login) addLogin(line.querySelector(".said"));
  };
  askServer(line.querySelector("button"), () => server.shares({ id: vote.id }), say, (reply) => {
    const cards = item.querySelectorAll(".answers .answer");
    reply.answers.forEach((html, position) => cards[position] && putHeat(cards[position], html));
    say("Shown below the answers.", {});
  });
}

function facts(vote) {
  const parts = [vote.purpose === "compare" ? "In a blind comparison" : "For training"];
  if (vote.rater) parts.push(`by ${vote.rater}`);
  if (vote.milliseconds !== null) parts.push(`after ${duration(vote.milliseconds)}`);
  if (vote.repeat) parts.push("shown a second time");
  if (vote.imported) parts.push("imported from a file");
  return parts.join(" · ");
}

function makeCard(answer, position) {
  const article = make("article", "answer");
  article.setAttribute("aria-label", `Answer ${LETTERS[position]}`);
  const top = make("header");
  top.append(make("span", "letter", LETTERS[position]), make("span", "source", answer.source));
  const text = make("div", "text");
  text.innerHTML = answer.html || "<p class='faint'>(an empty answer)</p>";
  article.append(top, text);
  return article;
}

// ---- correcting

function choices(count) {
  if (count === 1) return [["both_good", "Good"], ["both_bad", "Bad"], ["skip", "Skipped"]]; // a thumb
  const all = count === 2 ? "Both" : "All";
  const better = count === 2 ? [["A > B", "A is better"], ["B > A", "B is better"]] : [["ranked", "Ranked"]];
  return [...better, ["tie", "Tie"], ["both_good", `${all} good`], ["both_bad", `${all} bad`], ["skip", "Skipped"]];
}

function prepare(form, vote, item) {
  const count = vote.answers.length;
  const pair = count === 2 ? (vote.ranking.startsWith("A") ? "A > B" : "B > A") : "ranked";
  const now = vote.verdict === "ranked" ? pair : vote.verdict;
  for (const [value, text] of choices(count)) {
    const label = make("label");
    const radio = make("input");
    radio.type = "radio";
    radio.name = "verdict";
    radio.value = value;
    radio.checked = value === now;
    label.append(radio, text);
    form.querySelector(".verdicts").append(label);
  }
  const draft = readDraft(`vote ${vote.id}`) || {};
  for (const name of FIELDS) form.elements[name].value = draft[name] ?? vote[name];
  if (draft.verdict) form.elements.verdict.value = draft.verdict;
  form.closest("details").open = Boolean(draft.verdict);
  const keep = () => keepDraft(`vote ${vote.id}`, readFields(form));
  const update = () => {
    const chosen = form.elements.verdict.value;
    form.querySelector(".ranking").hidden = chosen !== "ranked";
    form.elements.strength.disabled = !(chosen === "ranked" || chosen.includes(">"));
  };
  form.addEventListener("change", update);
  form.addEventListener("change", keep);
  form.addEventListener("input", keep);
  update();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form, "correct", { id: vote.id, vote: readForm(form) }, item);
  });
  form.querySelector(".undo").addEventListener("click", () => send(form, "undo", { id: vote.id }, item));
}

function readFields(form) {
  const names = ["verdict", ...FIELDS];
  return Object.fromEntries(names.map((name) => [name, form.elements[name].value]));
}

function readForm(form) {
  const fields = form.elements;
  const verdict = fields.verdict.value;
  const more = { strength: fields.strength.value, note: fields.note.value, edited: fields.edited.value };
  if (verdict.includes(">")) return { verdict: "ranked", ranking: verdict, ...more };
  return { verdict, ranking: fields.ranking.value, ...more };
}

async function send(form, name, data, item) {
  if (form.getAttribute("aria-busy")) return;
  form.setAttribute("aria-busy", "true");
  form.querySelector(".problem").textContent = "";
  const reply = await write(name, data);
  form.removeAttribute("aria-busy");
  if (reply.error) {
    form.querySelector(".problem").textContent = reply.error;
    if (reply.login) addLogin(form.querySelector(".problem"));
    return;
  }
  dropDraft(`vote ${data.id}`);
  document.dispatchEvent(new CustomEvent("lorarlhf-votes", { detail: root }));
  if (reply.gone) return removeRow(item, reply.message);
  showStatus(reply.message);
  if (opened !== item) return;
  item.dataset.id = reply.id;
  if (reply.row) fill(item, reply.row, item.dataset.rater);
  draw(item, reply);
  item.querySelector("button").focus();
}

// The row that takes its position gets the focus, so that the keyboard continues there.
async function removeRow(item, text) {
  const position = [...list.children].indexOf(item);
  await search(start, text);
  const next = list.children[Math.min(position, list.children.length - 1)];
  (next ? next.querySelector("button") : filter.elements.words).focus();
}

// ---- the filters

let typing = null;
filter.addEventListener("submit", (event) => event.preventDefault());
// The field of words reports a change only when it is left, as by a click on what it found.
filter.addEventListener("change", () => {
  const data = { ...Object.fromEntries(new FormData(filter)), start };
  if (JSON.stringify(data) !== searched) search(0);
});
filter.elements.words.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => search(0), TYPING_MS);
});
list.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !opened) return;
  const button = opened.querySelector("button");
  close();
  button.focus();
});
// Votes were imported, or another part of the page changed them.
document.addEventListener("lorarlhf-votes", (event) => {
  if (event.detail !== root) search(0);
});

search(0);
