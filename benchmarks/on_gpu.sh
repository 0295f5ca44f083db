#!/usr/bin/env bash
# Run this first on a new GPU: it runs doctor, the quick demo and every stage, compares measured and
# computed peaks of memory, and writes a text for a bug report.
#   bash benchmarks/on_gpu.sh                       # the small base, about five minutes
#   bash benchmarks/on_gpu.sh --preset 12gb-7b      # a preset; downloads its base from the hub
#   bash benchmarks/on_gpu.sh --everything          # all presets of this card's size, and PPO against
#                                                   # TRL's: hours, and a hundred gigabytes of bases
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
make -s install
exec .venv/bin/python benchmarks/on_gpu.py "$@"
