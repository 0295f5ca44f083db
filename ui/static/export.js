// Shows what a download contains and leaves out, before it is downloaded.

const root = element.querySelector(".history");
const find = (name) => root.querySelector(`[data-part="${name}"]`);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const FIELDS = ["form", "purpose", "scope"];

let requests = 0; // replies to earlier requests are not shown

async function count() {
  const number = (requests += 1);
  const link = find("link");
  link.hidden = true;
  find("status").textContent = "Counting …";
  const data = Object.fromEntries(FIELDS.map((name) => [name, find(name).value]));
  let reply = null;
  try {
    reply = await server.export(data);
  } catch (error) {
    reply = null;
  }
  if (number !== requests) return;
  if (!reply || reply.error) {
    find("status").textContent = (reply && reply.error) || "The server does not answer. Try again.";
    return;
  }
  find("whose").hidden = !reply.everybody;
  const rest = reply.left_out.length ? ` Left out: ${reply.left_out.join("; ")}.` : "";
  const rows = `${plural(reply.rows, "row")} from ${plural(reply.votes, "vote")}.`;
  find("status").textContent = reply.votes ? rows + rest : "There are no such votes yet.";
  link.href = reply.link;
  link.textContent = `Download ${plural(reply.rows, "row")}`;
  link.hidden = !reply.rows;
}

for (const name of FIELDS) find(name).addEventListener("change", count);
document.addEventListener("lorarlhf-votes", count);
count();
