# Makes or updates the Python environment .venv beside the scripts that source this file; bash, from any folder.

# Prints the first Python of at least 3.11 that is installed.
find_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      command -v "$name"
      return
    fi
  done
  echo "error: no Python of 3.11 to 3.13 found; install one, with its venv module" >&2
  return 1
}

# set_up ROOT [EXTRAS]: installs the project of ROOT, editable, with comma-separated extras, into ROOT/.venv.
# Does nothing where that was done before for the same requirements.
set_up() {
  local root=$1 extras=${2:-} venv=$1/.venv python want
  local stamp=$venv/installed
  # Scripts in an environment hold its path, so a moved checkout needs another install.
  want="$(cat "$root/pyproject.toml" "$root/requirements.lock" <(echo "$root") | cksum) "
  if [[ -f $stamp && $(cat "$stamp") == "$want"*",$extras,"* ]]; then
    return
  fi
  echo "setting up $venv (once; downloads a few hundred megabytes)"
  rm -f "$stamp"
  if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    python=$(find_python) || return 1
    if ! "$python" -m venv --clear "$venv"; then
      echo "error: $python cannot make $venv; install its venv module (Debian: apt-get install python3-venv)" >&2
      return 1
    fi
  fi
  local constraints=()
  # The exact versions were resolved for this Python and system; elsewhere the tested ranges of pyproject.toml hold.
  if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) or sys.platform != "linux")'; then
    constraints=(--constraint "$root/requirements.lock")
  fi
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet \
    ${constraints[@]+"${constraints[@]}"} --editable "$root${extras:+[$extras]}" || return 1
  echo "$want,,$extras," >"$stamp"
}
