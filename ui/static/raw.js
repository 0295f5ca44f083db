// Shows texts exactly as they were written, without any markup: a button and the key R.
// The server gives each text as markup, with the text itself in `data-raw`.

const RAW = "lorarlhf raw text";
const drawnTexts = new WeakMap(); // the markup of each text that is shown raw

const isRaw = () => document.documentElement.classList.contains("raw-text");

function drawRaw() {
  let changed = false;
  for (const text of document.querySelectorAll(".written")) {
    if (isRaw() && !drawnTexts.has(text)) {
      drawnTexts.set(text, [...text.childNodes]);
      text.textContent = text.dataset.raw;
      changed = true;
    } else if (!isRaw() && drawnTexts.has(text)) {
      text.replaceChildren(...drawnTexts.get(text));
      drawnTexts.delete(text);
      changed = true;
    }
  }
  for (const button of document.querySelectorAll("[data-raw-toggle]"))
    button.setAttribute("aria-pressed", String(isRaw()));
  if (changed) window.dispatchEvent(new Event("resize")); // long answers are folded at another line
}

function toggleRaw() {
  document.documentElement.classList.toggle("raw-text");
  try {
    sessionStorage.setItem(RAW, isRaw() ? "yes" : "");
  } catch (error) {
    // The browser keeps nothing; then it is for this page only.
  }
  drawRaw();
}

function onRawKey(event) {
  if (!element.isConnected) return document.removeEventListener("keydown", onRawKey);
  const typing = event.target.closest("input, textarea, select, [contenteditable='true']");
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.toLowerCase() === "r" || event.code === "KeyR") toggleRaw();
}

if (element.querySelector("[data-raw-toggle]")) document.addEventListener("keydown", onRawKey);
element.addEventListener("click", (event) => {
  if (event.target.closest("[data-raw-toggle]")) toggleRaw();
});
// What is drawn later, as an answer that grows, is shown in the same way.
new MutationObserver(() => isRaw() && drawRaw()).observe(element, { childList: true, subtree: true });
try {
  document.documentElement.classList.toggle("raw-text", sessionStorage.getItem(RAW) === "yes");
} catch (error) {
  // As above.
}
drawRaw();
