// Comes before the scripts of the widgets that repeat requests.

// The status of a small request that is always allowed; 0 if the server does not answer.
async function reach() {
  try {
    return (await fetch("/gradio_api/app_id", { cache: "no-store" })).status;
  } catch (error) {
    return 0;
  }
}

