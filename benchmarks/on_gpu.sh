#!/usr/bin/env bash
# Everything on a card in one go, and the first thing to run on a new one: checks, the quick demo,
# the peak of every stage beside the computed one, and a block of text for a bug report.
#   bash benchmarks/on_gpu.sh                       # the small base, about five minutes
#   bash benchmarks/on_gpu.sh --preset 12gb-8b      # a preset: fetches its base from the hub
#   bash benchmarks/on_gpu.sh --everything          # all presets of this card's size, and PPO against
#                                                   # TRL's: hours, and a hundred gigabytes of bases
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
make -s install
exec .venv/bin/python benchmarks/on_gpu.py "$@"
