// Which key was pressed, whatever the keyboard's layout. Comes before vote_widget.js.

// A Latin letter or a digit is what the layout makes of the key. With another script, an input method
// that is on, or a layout whose digits need Shift, it is what stands in this place on a US keyboard.
function keyOf(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const named = key.length > 1 && !["Dead", "Process", "Unidentified"].includes(key);
  if (named || /^[a-z0-9=]$/.test(key) || event.shiftKey) return key;
  const [, letter, digit] = /^(?:Key([A-Z])|Digit([0-9]))$/.exec(event.code) || [];
  if (event.code === "Equal" && key !== "+") return "=";
  return letter ? letter.toLowerCase() : digit || key;
}

