"""Settings for every test: no network through the Hugging Face hub, no telemetry."""

import os

# Set before any test module imports a library that reads these only once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
