#!/usr/bin/env bash
# Sets up .venv and runs lint, types and all tests.
#   ./launch/test.sh [pytest arguments ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh
prepare test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two at a time: most of a test is one core compiling.
# A half of the tests each, in order, so that what a module shares is made once.
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
