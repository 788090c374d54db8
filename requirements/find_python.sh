#!/bin/sh
# Prints the first Python 3.11, 3.12 or 3.13 that can make a virtual environment; 3.11 first, for which cpu.lock was
# resolved.
# Names of other versions are skipped, and so are those that do not run (pyenv's shims) or lack venv (Debian's python3).
found=
for python in python3.11 python3.12 python3.13 python3 python; do
  path=$(command -v "$python") || continue
  version=$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
  case $version in
    3.11|3.12|3.13) ;;
    *) found="$found $python is $version;"; continue ;;
  esac
  if "$path" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$path"
    exit 0
  fi
  found="$found $python ($version) lacks venv: apt install python$version-venv;"
done
cat >&2 <<EOF
No usable Python 3.11, 3.12 or 3.13 found.$found
Install one, then run make again:
  Debian 12 and 13, Ubuntu 24.04:  sudo apt install python3 python3-venv
  Ubuntu 22.04:                    sudo apt install python3.11 python3.11-venv
  Fedora, RHEL:                    sudo dnf install python3.12
  anywhere, without root:          uv python install 3.12; make setup PYTHON="\$(uv python find 3.12)"
Or name an interpreter: make setup PYTHON=/path/to/python3.12
EOF
exit 1
