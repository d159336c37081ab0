#!/usr/bin/env bash
# One command from a fresh clone to a student and report.html.
#   ./launch/quickstart.sh [--config.section.field=value ...]
# WORKDIR says where (default: workdir). Run again, it resumes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh
prepare ""
exec .venv/bin/python -m autodistill_jax run --config=configs/quickstart.py \
  --workdir="${WORKDIR:-workdir}" "$@"
