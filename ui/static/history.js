// The list of votes: filters, pages, one vote opened at a time, and its correction.
// It runs inside a gr.HTML: `element` is its root, `server` calls the page's Python functions.
// What raters and models wrote becomes text; only the server's own safe HTML becomes markup.

const root = element.querySelector(".history");
const find = (name) => root.querySelector(`[data-part="${name}"]`);
const filter = find("filter");
const list = find("rows");
const LETTERS = "ABCDEF";
const TYPING_MS = 300;
const RETRY_MS = 1500;
const SILENT = "The server does not answer. Votes up to now are kept; trying again …";

let start = 0;
let asked = 0; // answers to earlier questions are not shown
let opened = null; // the line that is open

// ---- talking to the server

// Reading is asked again until there is an answer, unless something newer was asked.
async function read(name, data, wanted) {
  while (wanted()) {
    try {
      const answer = await server[name](data);
      if (answer) return answer;
    } catch (error) {
      // As below: no answer.
    }
    if ((await reach()) === 401) return { error: "You are not logged in any more. Reload the page." };
    if (wanted()) tell(SILENT, "warn");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
  return null;
}

async function write(name, data) {
  try {
    const answer = await server[name](data);
    if (answer) return answer;
  } catch (error) {
    // As below: no answer.
  }
  return { error: "The server does not answer. Open the vote again to see what was kept." };
}

function tell(text, kind) {
  find("told").textContent = text;
  find("told").dataset.kind = kind || "";
}

// ---- the list

async function look(from, more) {
  const number = (asked += 1);
  const data = { ...Object.fromEntries(new FormData(filter)), start: from };
  list.setAttribute("aria-busy", "true");
  const told = await read("look", data, () => number === asked);
  if (!told || number !== asked) return;
  list.removeAttribute("aria-busy");
  if (told.error) return tell(told.error, "warn");
  start = told.start;
  opened = null;
  find("whose").hidden = !told.everybody;
  list.replaceChildren(...told.rows.map((row) => line(row, told.rater)));
  const last = start + told.rows.length;
  const range = told.total ? `Votes ${start + 1} to ${last} of ${told.total.toLocaleString("en")}` : "";
  tell(more || (range ? `${range}, the newest first.` : nothing(told)));
  find("pager").hidden = told.total <= told.page;
  find("newer").disabled = start === 0;
  find("older").disabled = last >= told.total;
  const pages = Math.ceil(told.total / told.page);
  find("place").textContent = `Page ${start / told.page + 1} of ${pages}`;
  find("newer").onclick = () => turn(start - told.page);
  find("older").onclick = () => turn(start + told.page);
}

function nothing(told) {
  const fields = Object.entries(Object.fromEntries(new FormData(filter)));
  const filtered = fields.some(([name, value]) => value && name !== "scope");
  if (filtered) return "No vote is like this. Change the choice above.";
  const others = told.everybody && filter.elements.scope.value === "mine";
  return `There are no votes${others ? " of yours" : ""} yet.` + (others ? " Look at everybody's above." : "");
}

async function turn(from) {
  await look(from);
  const first = list.querySelector("button");
  if (first) first.focus();
  root.scrollIntoView({ block: "start" });
}

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function line(row, rater) {
  const item = make("li");
  item.dataset.id = row.id;
  const button = make("button");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.append(make("span", "verdict"), make("span", "asked"), make("span", "about"));
  button.addEventListener("click", () => (item === opened ? close() : open(item)));
  item.append(button);
  fill(item, row, rater);
  return item;
}

function fill(item, row, rater) {
  item.dataset.rater = rater;
  item.querySelector(".verdict").textContent = row.said;
  item.querySelector(".asked").textContent = row.prompt || "(an empty prompt)";
  const about = [when(row.when)];
  if (row.rater !== rater) about.push(row.rater);
  if (row.purpose === "compare") about.push("taste test");
  if (row.noted) about.push("note");
  if (row.edited) about.push("own answer");
  item.querySelector(".about").textContent = about.join(" · ");
}

function when(milliseconds) {
  const date = new Date(milliseconds);
  if (Number.isNaN(date.getTime())) return "at an unknown time";
  return date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

function lasted(milliseconds) {
  const seconds = Math.round(milliseconds / 1000);
  if (seconds < 60) return `${seconds} s`;
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

// ---- one vote

function close() {
  if (!opened) return;
  opened.querySelector("button").setAttribute("aria-expanded", "false");
  const whole = opened.querySelector(".whole");
  if (whole) whole.remove();
  opened = null;
}

async function open(item) {
  close();
  opened = item;
  item.querySelector("button").setAttribute("aria-expanded", "true");
  const told = await read("open", { id: Number(item.dataset.id) }, () => opened === item);
  if (!told || opened !== item) return;
  if (told.error) {
    close();
    return tell(told.error, "warn");
  }
  draw(item, told);
}

function draw(item, vote) {
  const old = item.querySelector(".whole");
  if (old) old.remove();
  const whole = find("whole").content.firstElementChild.cloneNode(true);
  const part = (name) => whole.querySelector(name);
  part(".facts").textContent = facts(vote);
  part(".prompt").innerHTML = vote.prompt;
  vote.answers.forEach((answer, place) => part(".answers").append(card(answer, place)));
  if (vote.edited) {
    part(".edited").hidden = false;
    part(".edited .text").innerHTML = vote.edited_html;
  }
  part(".noted").hidden = !vote.note;
  part(".note").textContent = vote.note;
  if (vote.yours) prepare(part("form"), vote, item);
  part(".change").hidden = !vote.yours;
  part(".theirs").hidden = vote.yours;
  part(".theirs").textContent = `This is ${vote.rater}'s vote, who logs in to change it.`;
  item.append(whole);
}

function facts(vote) {
  const said = [vote.purpose === "compare" ? "In a taste test" : "For training"];
  if (vote.rater) said.push(`by ${vote.rater}`);
  if (vote.milliseconds !== null) said.push(`after ${lasted(vote.milliseconds)}`);
  if (vote.repeat) said.push("asked a second time");
  return said.join(" · ");
}

function card(answer, place) {
  const made = make("article", "answer");
  made.setAttribute("aria-label", `Answer ${LETTERS[place]}`);
  const top = make("header");
  top.append(make("span", "letter", LETTERS[place]), make("span", "source", answer.source));
  const text = make("div", "text");
  text.innerHTML = answer.html || "<p class='faint'>(an empty answer)</p>";
  made.append(top, text);
  return made;
}

// ---- correcting

function choices(count) {
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
  for (const name of ["ranking", "strength", "note", "edited"]) form.elements[name].value = vote[name];
  const update = () => {
    const chosen = form.elements.verdict.value;
    form.querySelector(".ranking").hidden = chosen !== "ranked";
    form.elements.strength.disabled = !(chosen === "ranked" || chosen.includes(">"));
  };
  form.addEventListener("change", update);
  update();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form, "correct", { id: vote.id, said: said(form) }, item);
  });
  form.querySelector(".back").addEventListener("click", () => send(form, "take_back", { id: vote.id }, item));
}

function said(form) {
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
  const told = await write(name, data);
  form.removeAttribute("aria-busy");
  if (told.error) {
    form.querySelector(".problem").textContent = told.error;
    return;
  }
  document.dispatchEvent(new CustomEvent("lorarlhf-votes", { detail: root }));
  if (told.gone) return gone(item, told.told);
  tell(told.told);
  if (opened !== item) return;
  item.dataset.id = told.id;
  if (told.row) fill(item, told.row, item.dataset.rater);
  draw(item, told);
  item.querySelector("button").focus();
}

// The line that took its place gets the focus, so that keys go on from there.
async function gone(item, text) {
  const place = [...list.children].indexOf(item);
  await look(start, text);
  const left = list.children[Math.min(place, list.children.length - 1)];
  (left ? left.querySelector("button") : filter.elements.words).focus();
}

// ---- the filters

let typing = null;
filter.addEventListener("submit", (event) => event.preventDefault());
filter.addEventListener("change", () => look(0));
filter.elements.words.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => look(0), TYPING_MS);
});
list.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !opened) return;
  const button = opened.querySelector("button");
  close();
  button.focus();
});
// Votes that came from a file, or were changed by another part of the page.
document.addEventListener("lorarlhf-votes", (event) => {
  if (event.detail !== root) look(0);
});

look(0);
