// Comes before the scripts of the widgets that repeat requests.

const LOGGED_OUT = "You are not logged in any more. What you typed is kept in this browser.";

// Addresses are relative, since a proxy may serve the pages under a path of its own.

// The status of a small request that is always allowed; 0 if the server does not answer.
async function reach() {
  try {
    return (await fetch("gradio_api/app_id", { cache: "no-store" })).status;
  } catch (error) {
    return 0;
  }
}

// Put the way back to this page behind a message about a lost login.
function addLogin(message) {
  const link = document.createElement("a");
  const page = location.pathname.split("/").pop();
  link.href = `login?to=${encodeURIComponent(`/${page}`)}`;
  link.textContent = "Log in again";
  message.append(" ", link);
}
