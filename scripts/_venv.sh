# Sourced by the scripts beside it: make or refresh .venv. pip reads PIP_* and its own configuration as ever.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"

# Usage: ensure_venv EXTRA... - install the project with these extras, unless nothing has changed since.
ensure_venv() {
  cd "$root"
  local extras inputs stamp
  extras="$(printf '%s\n' "$@" | sort | paste -sd, -)"
  inputs="$(cat pyproject.toml constraints.txt | sha256sum 2>/dev/null || cat pyproject.toml constraints.txt | shasum -a 256)"
  stamp="${inputs%% *}"
  if [ -x "$venv/bin/python" ] && _covers "$stamp" "$@"; then
    return
  fi
  _make_venv
  echo "installing ourvidz[$extras] into .venv (only when pyproject.toml or constraints.txt changed)" >&2
  "$venv/bin/python" -m pip install -c constraints.txt -e ".[$extras]" >&2
  _remember "$stamp" "$@"
}

# The stamp file's first line is the hash of what was installed from, the others are the extras.
_covers() {
  local stamp="$1" extra
  shift
  [ -f "$venv/ourvidz-stamp" ] && [ "$(head -n 1 "$venv/ourvidz-stamp")" = "$stamp" ] || return 1
  for extra in "$@"; do
    grep -qxF "$extra" "$venv/ourvidz-stamp" || return 1
  done
}

_remember() {
  local stamp="$1" before=""
  shift
  if [ -f "$venv/ourvidz-stamp" ] && [ "$(head -n 1 "$venv/ourvidz-stamp")" = "$stamp" ]; then
    before="$(tail -n +2 "$venv/ourvidz-stamp")"
  fi
  { echo "$stamp"; printf '%s\n' $before "$@" | sort -u; } > "$venv/ourvidz-stamp.new"
  mv "$venv/ourvidz-stamp.new" "$venv/ourvidz-stamp"
}

_make_venv() {
  [ -x "$venv/bin/python" ] && return
  local python="${PYTHON:-python3}"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "$python is not Python 3.11 or newer: install one, or name it with PYTHON=/path/to/python3" >&2
    exit 1
  fi
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python cannot make virtual environments: install python3-venv (Debian, Ubuntu: apt-get install python3-venv)" >&2
    exit 1
  fi
  echo "making .venv with $("$python" --version)" >&2
  rm -rf "$venv"
  "$python" -m venv "$venv"
}
