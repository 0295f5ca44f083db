// Buttons that ask the server something and show its reply, as what the reward role likes in an
// answer: the heat map stands below the text. The server made its HTML safe.

// Waits for a reply of the server's; a missing one becomes an error.
async function replyOf(request) {
  try {
    const reply = await request;
    if (reply) return reply;
  } catch (error) {
    // Handled below, as a missing reply.
  }
  return (await reach()) === 401
    ? { error: LOGGED_OUT, login: true }
    : { error: "The server does not answer. Ask again later." };
}

function putHeat(place, html) {
  place.querySelector(".heat")?.remove();
  place.insertAdjacentHTML("beforeend", html);
}

// Asks while the button is busy; `say` gets what is to be told, and `show` the reply.
async function askServer(button, request, say, show) {
  if (button.getAttribute("aria-busy")) return;
  button.setAttribute("aria-busy", "true");
  say("One moment …", {});
  const reply = await replyOf(request());
  button.removeAttribute("aria-busy");
  say(reply.error || "", reply);
  if (!reply.error) show(reply);
}
