#!/usr/bin/env bash
# One command from a fresh clone to a student and report.html.
#   ./launch/quickstart.sh [--config.section.field=value ...]
# WORKDIR says where (by default the folder workdir of the clone). Run again, it resumes.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
. launch/venv.sh
prepare ""
cd "$here" # Paths among the arguments are the caller's.
echo "starting; the first progress line comes in half a minute ..." >&2
exec "$root/.venv/bin/python" -m autodistill_jax run \
  --config="$root/configs/quickstart.py" --workdir="${WORKDIR:-$root/workdir}" "$@"
