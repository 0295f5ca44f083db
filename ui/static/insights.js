// What the votes say. The server computes the sections in the background and sends what it has: the
// page asks again until all is there. It runs inside a gr.HTML: `element` is its root, `server`
// calls the page's Python functions. The server made the HTML of the sections safe.

const root = element.querySelector(".insights");
const find = (name) => root.querySelector(`[data-part="${name}"]`);
const SECTIONS = ["tastes", "causes", "raters", "more", "reward"];
const AGAIN_MS = 600;
const RETRY_MS = 1500;
const READING_MS = 15000; // while the model loads, or reads the answers of older votes
let readings = 40; // it may never read some of them
const scope = root.querySelector("#insights-scope");

let looks = 0; // replies to earlier questions are not shown
const shown = new Map(); // the HTML of each section, so that what is open stays open

async function look(again) {
  const number = again || (looks += 1);
  const reply = await replyOf(server.look({ scope: asked(), again: Boolean(again) }));
  if (number !== looks || !element.isConnected) return;
  if (reply.error) {
    say(reply.error, reply);
    if (!reply.login) setTimeout(() => number === looks && look(), RETRY_MS);
    return;
  }
  find("whose").hidden = !reply.everybody;
  SECTIONS.forEach((name) => draw(name, reply.sections[name]));
  say(reply.problem || (reply.busy ? "Computing …" : ""), reply);
  if (reply.busy) setTimeout(() => number === looks && look(number), AGAIN_MS);
  else if (reply.unread && readings > 0) wait(number);
}

// Looks once more after a while; a page that nobody sees waits on.
function wait(number) {
  setTimeout(() => {
    if (number !== looks || !element.isConnected) return;
    if (document.hidden) return wait(number);
    readings -= 1;
    look();
  }, READING_MS);
}

// Until the server has said whose votes one may see, it is asked for those that everybody may see.
const asked = () => (find("whose").hidden ? "visible" : scope.value);

function draw(name, html) {
  find(name).hidden = !html;
  if (html === shown.get(name)) return;
  shown.set(name, html);
  find(`${name}-body`).innerHTML = html || "";
}

// A screen reader says the status whenever it is written, so the same text is not written again.
function say(text, reply) {
  const status = find("status");
  if (status.dataset.text === text) return;
  status.dataset.text = text;
  status.textContent = text;
  if (reply.login) addLogin(status);
}

const form = find("axis");
for (const name of ["first", "second"]) draftField(form.elements[name], `own taste, ${name}`);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const said = form.querySelector(".said");
  const tell = (text, reply) => {
    said.textContent = text;
    if (reply.login) addLogin(said);
  };
  const request = () =>
    server.own_axis({ scope: asked(), first: form.elements.first.value, second: form.elements.second.value });
  askServer(form.querySelector("[type=submit]"), request, tell, (reply) => {
    const item = document.createElement("li");
    item.innerHTML = reply.html;
    find("own").prepend(item);
    tell("Shown below.", {});
  });
});
scope.addEventListener("change", () => {
  find("own").replaceChildren();
  look();
});

look();
