// The rows with which three or more answers are ranked: by mouse, finger, arrow or number keys.
// A part of the vote widget: vote_widget.js defines `find` and starts a ranking for each new item.

const LETTERS = "ABCDEF";

let ranking = []; // {position, tied}; rows from `cut` on are not ranked
let cut = 0;
let picked = 0; // rows that were put in order by number keys
let confirmed = false; // an unchanged ranking is sent at the second attempt

function startRanking(count) {
  ranking = Array.from({ length: count }, (_, position) => ({ position, tied: false }));
  cut = count;
  picked = 0;
  confirmed = false;
  find("ranking").replaceChildren();
  drawRanking();
}

// The ranking as tiers of positions, or the problem that the rater has to know.
function readRanking() {
  const unchanged = ranking.every((row, n) => row.position === n && !row.tied);
  if (unchanged && cut === ranking.length && !confirmed) {
    confirmed = true;
    return { problem: "This is the order in which they were shown. Send it again if you mean it." };
  }
  const tiers = [];
  ranking.slice(0, cut).forEach((row, n) => {
    if (row.tied && n) tiers[tiers.length - 1].push(row.position);
    else tiers.push([row.position]);
  });
  return tiers.length ? { tiers } : { problem: "Put at least one answer above the line." };
}

// ---- drawing

// The row with the focus or the finger stays in the document, since a touch ends when its element
// is removed. The other rows are put around it.
function drawRanking(focus) {
  const list = find("ranking");
  const order = rows();
  const items = order.map(
    (position) => list.querySelector(`[data-position="${position}"]`) || makeRow(position),
  );
  const fixed = Math.max(0, order.indexOf(focus));
  if (!list.contains(items[fixed])) list.append(items[fixed]);
  items.forEach((item, n) => {
    if (n < fixed) list.insertBefore(item, items[fixed]);
    if (n > fixed) list.append(item);
  });
  ranking.forEach((row, n) => describe(list.querySelector(`[data-position="${row.position}"]`), row, n));
  if (focus !== undefined) items[fixed].focus();
}

function makeRow(position) {
  const item = document.createElement("li");
  item.tabIndex = 0;
  item.dataset.position = position;
  if (position === "line") {
    item.className = "divider";
    item.textContent = "not ranked below this line";
    item.setAttribute("aria-label", "Line: answers below it are not ranked. Arrow keys move it.");
  } else {
    item.innerHTML =
      `<span class="grip" aria-hidden="true">⠿</span><b>${LETTERS[position]}</b>` +
      `<span class="rank"></span><button type="button" class="quiet tie" tabindex="-1">=</button>`;
    item.querySelector(".tie").addEventListener("click", () => tie(position));
  }
  item.addEventListener("keydown", (event) => rowKey(event, position));
  item.addEventListener("pointerdown", (event) => drag(event, position));
  return item;
}

function describe(item, row, n) {
  const [unranked, tied] = [n >= cut, n < cut && n > 0 && row.tied];
  const rank = unranked ? "not ranked" : tied ? "as good as the one above" : `${n + 1}.`;
  const letter = LETTERS[row.position];
  item.classList.toggle("unranked", unranked);
  item.classList.toggle("tied", tied);
  item.setAttribute("aria-label", `Answer ${letter}, ${rank}. Arrow keys move it, = ties it.`);
  item.querySelector(".rank").textContent = rank;
  const button = item.querySelector(".tie");
  button.hidden = !n || unranked;
  button.setAttribute("aria-label", `Answer ${letter} is as good as the one above`);
  button.setAttribute("aria-pressed", String(tied));
}

// ---- changing

// The rows in the order of the screen, with the line among them.
function rows() {
  const order = ranking.map((row) => row.position);
  order.splice(cut, 0, "line");
  return order;
}

function arrange(order) {
  const ties = new Map(ranking.map((row) => [row.position, row.tied]));
  cut = order.indexOf("line");
  ranking = order
    .filter((position) => position !== "line")
    .map((position) => ({ position, tied: ties.get(position) }));
  if (ranking.length) ranking[0].tied = false;
}

function move(position, step) {
  const order = rows();
  const from = order.indexOf(position);
  const to = Math.max(0, Math.min(order.length - 1, from + step));
  order.splice(to, 0, order.splice(from, 1)[0]);
  const row = ranking.find((known) => known.position === position);
  if (row) row.tied = false;
  arrange(order);
  picked = 0;
  drawRanking(position);
}

function tie(position) {
  const n = ranking.findIndex((row) => row.position === position);
  if (n < 1 || n >= cut) return;
  ranking[n].tied = !ranking[n].tied;
  drawRanking(ranking[n].position);
}

function rowKey(event, position) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = { ArrowUp: -1, ArrowDown: 1 };
  if (event.key in steps) move(position, steps[event.key]);
  else if (keyOf(event) === "=") tie(position);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

// Number keys rank from the best to the worst.
function pick(position) {
  const order = rows();
  const from = order.indexOf(position);
  if (from < picked) return;
  order.splice(picked, 0, order.splice(from, 1)[0]);
  picked += 1;
  arrange(order);
  drawRanking();
}

function drag(event, position) {
  if (event.target.closest("button")) return;
  event.preventDefault();
  const list = find("ranking");
  const dragged = event.currentTarget;
  const follow = (moved) => {
    const order = rows();
    const from = order.indexOf(position);
    const others = [...list.children].filter((child) => child.dataset.position !== String(position));
    const above = others.filter((child) => {
      const box = child.getBoundingClientRect();
      return box.top + box.height / 2 < moved.clientY;
    }).length;
    if (above === from) return;
    order.splice(above, 0, order.splice(from, 1)[0]);
    arrange(order);
    picked = 0;
    drawRanking(position);
  };
  const end = () => {
    document.removeEventListener("pointermove", follow);
    document.removeEventListener("pointerup", end);
    document.removeEventListener("pointercancel", end);
    dragged.classList.remove("dragged");
    drawRanking(position);
  };
  document.addEventListener("pointermove", follow);
  document.addEventListener("pointerup", end);
  document.addEventListener("pointercancel", end);
  dragged.classList.add("dragged");
}
