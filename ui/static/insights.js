// What the votes say. The server computes the sections in the background and sends what it has: the
// page asks again until all is there. It runs inside a gr.HTML: `element` is its root, `server`
// calls the page's Python functions. The server made the HTML of the sections safe.

const root = element.querySelector(".insights");
const find = (name) => root.querySelector(`[data-part="${name}"]`);
const SECTIONS = ["tastes", "causes", "raters", "more", "reward"];
const AGAIN_MS = 600;
const READING_MS = 15000; // while the model reads the answers of older votes
let readings = 40; // it may never read some of them
const scope = root.querySelector("#insights-scope");

let looks = 0; // replies to earlier questions are not shown
const shown = new Map(); // the HTML of each section, so that what is open stays open

async function look(again) {
  const number = again || (looks += 1);
  const reply = await replyOf(server.look({ scope: asked(), again: Boolean(again) }));
  if (number !== looks || !element.isConnected) return;
  if (reply.error) return say(reply.error, reply);
  find("whose").hidden = !reply.everybody;
  SECTIONS.forEach((name) => draw(name, reply.sections[name]));
  say(reply.problem || (reply.busy ? "Computing from your votes …" : ""), reply);
  if (reply.busy) setTimeout(() => number === looks && look(number), AGAIN_MS);
  else if (reply.missing && (readings -= 1) > 0)
    setTimeout(() => number === looks && !document.hidden && look(), READING_MS);
}

// Until the server has said whose votes one may see, it is asked for those that everybody may see.
const asked = () => (find("whose").hidden ? "visible" : scope.value);

function draw(name, html) {
  find(name).hidden = !html;
  if (html === shown.get(name)) return;
  shown.set(name, html);
  find(`${name}-body`).innerHTML = html || "";
}

function say(text, reply) {
  const status = find("status");
  status.textContent = text;
  if (reply.login) addLogin(status);
}

const form = find("axis");
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const said = form.querySelector(".said");
  const tell = (text, reply) => {
    said.textContent = text;
    if (reply.login) addLogin(said);
  };
  const request = () =>
    server.own_axis({ scope: asked(), first: form.elements.first.value, second: form.elements.second.value });
  askForHeat(form.querySelector("[type=submit]"), request, tell, (reply) => {
    const item = document.createElement("li");
    item.innerHTML = reply.html;
    find("own").prepend(item);
  });
});
scope.addEventListener("change", () => {
  find("own").replaceChildren();
  look();
});

look();
