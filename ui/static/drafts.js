// What somebody typed, kept in the browser until the server has acknowledged it. So neither an
// undo, a reload nor a lost login takes it away. Drafts belong to one project and one rater.

const DRAFT = "lorarlhf draft ";
const DRAFT_MS = 30 * 24 * 3600 * 1000; // nobody comes back for older ones
const draftsOf = document.querySelector("[data-drafts]")?.dataset.drafts; // the project and the rater

function keepDraft(name, fields) {
  if (!Object.values(fields).some(Boolean)) return dropDraft(name);
  try {
    localStorage.setItem(`${DRAFT}${draftsOf} ${name}`, JSON.stringify({ at: Date.now(), fields }));
  } catch (error) {
    // The browser keeps nothing, or has no room.
  }
}

// The fields of a draft; null if there is none.
function readDraft(name) {
  try {
    return JSON.parse(localStorage.getItem(`${DRAFT}${draftsOf} ${name}`))?.fields ?? null;
  } catch (error) {
    return null;
  }
}

function dropDraft(name) {
  try {
    localStorage.removeItem(`${DRAFT}${draftsOf} ${name}`);
  } catch (error) {
    // As above.
  }
}

function dropOldDrafts() {
  try {
    for (const key of Object.keys(localStorage)) {
      if (!key.startsWith(DRAFT)) continue;
      if (!(JSON.parse(localStorage.getItem(key)).at > Date.now() - DRAFT_MS)) localStorage.removeItem(key);
    }
  } catch (error) {
    // As above.
  }
}

// Keep what is typed in a field; what is there already, or was kept, stays in it.
function draftField(field, name) {
  const kept = readDraft(name)?.text;
  if (kept && !field.value) field.value = kept;
  field.addEventListener("input", () => keepDraft(name, { text: field.value }));
  if (field.value) keepDraft(name, { text: field.value });
}

dropOldDrafts();
