// What a download holds and leaves out, before it is downloaded.

const root = element.querySelector(".history");
const find = (name) => root.querySelector(`[data-part="${name}"]`);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const FIELDS = ["form", "purpose", "scope"];

let asked = 0; // answers to earlier questions are not shown

async function count() {
  const number = (asked += 1);
  const link = find("link");
  link.hidden = true;
  find("told").textContent = "Counting …";
  const data = Object.fromEntries(FIELDS.map((name) => [name, find(name).value]));
  let told = null;
  try {
    told = await server.export(data);
  } catch (error) {
    told = null;
  }
  if (number !== asked) return;
  if (!told || told.error) {
    find("told").textContent = (told && told.error) || "The server does not answer. Try again.";
    return;
  }
  find("whose").hidden = !told.everybody;
  const rest = told.left_out.length ? ` Left out: ${told.left_out.join("; ")}.` : "";
  const rows = `${plural(told.rows, "row")} from ${plural(told.votes, "vote")}.`;
  find("told").textContent = told.votes ? rows + rest : "There are no such votes yet.";
  link.href = told.link;
  link.textContent = `Download ${plural(told.rows, "row")}`;
  link.hidden = !told.rows;
}

for (const name of FIELDS) find(name).addEventListener("change", count);
document.addEventListener("lorarlhf-votes", count);
count();
