// The answers on the vote widget's page: their texts, and what is folded.
// A part of the vote widget: vote_widget.js defines `root`, `find` and `view`.

function draw(answers) {
  const grid = find("answers");
  while (grid.children.length > answers.length) grid.lastElementChild.remove();
  answers.forEach((answer, position) => {
    const card = grid.children[position] || grid.appendChild(makeCard(position));
    card.querySelector(".body").innerHTML = answer.html || `<p class="faint">${view.streaming ? "…" : "(an empty answer)"}</p>`;
    card.querySelector(".flag").hidden = !answer.flag;
  });
  fold();
}

function makeCard(position) {
  const card = document.createElement("article");
  card.className = "answer";
  card.setAttribute("aria-label", `Answer ${LETTERS[position]}`);
  card.innerHTML =
    `<header><span class="letter">${LETTERS[position]}</span>` +
    `<button type="button" class="quiet edit">Edit a copy</button></header>` +
    `<p class="flag" hidden>This answer names its maker. Skip it if that influences you.</p>` +
    `<div class="body"></div><button type="button" class="quiet unfold" hidden>Show all</button>`;
  card.querySelector(".unfold").addEventListener("click", () => {
    card.classList.toggle("open");
    fold();
    card.scrollIntoView({ block: "nearest" });
  });
  card.querySelector(".edit").addEventListener("click", () => {
    const [field, texts] = [find("edited"), view.answers.map((answer) => answer.text)];
    find("more").open = true;
    const own = field.value.trim() && !texts.includes(field.value);
    if (own && !confirm("Replace the better answer that you have written?")) return;
    field.value = texts[position];
    keepTyped();
    field.focus();
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

// The next answers begin folded, and where the eye begins: on a phone the last vote was cast at the
// end of the page.
function startCards() {
  for (const card of root.querySelectorAll(".answer")) {
    card.classList.remove("open");
    card.querySelector(".body").scrollTop = 0;
  }
  fold();
  if (root.getBoundingClientRect().top < 0) root.scrollIntoView({ block: "start", behavior: "instant" });
}

// What is scrolled into view stops above the bar with the votes, however tall that is.
new ResizeObserver(() => {
  const bar = root.querySelector(".votes");
  const over = getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0;
  document.documentElement.style.setProperty("--votes-height", `${over}px`);
}).observe(element.querySelector(".votes"));
