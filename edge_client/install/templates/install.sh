#!/bin/sh
# Installs the fedkrso agent of this bundle on this board, without a network.
#
#   sudo ./install.sh [--data FILE] [--text COLUMN] [--label COLUMN] [--budget SIZE] [...]
#
# What follows goes to `fedkrso client install`, which asks for what is missing; `--dry-run` shows every file first.
# FEDKRSO_PREFIX: where the program goes, /opt/fedkrso by default. FEDKRSO_PYTHON: the Python to use, python$python by default.
# FEDKRSO_ONLY_PROGRAM=1: install the program and no service.
set -eu
cd "$$(dirname "$$0")"

prefix=$${FEDKRSO_PREFIX:-/opt/fedkrso}
python=$${FEDKRSO_PYTHON:-python$python}

refuse() {
    echo "error: $$1" >&2
    exit 2
}

[ "$$(uname -m)" = "$machine" ] || refuse "this bundle is for $machine, and this is $$(uname -m) (make one with another --target)"
command -v "$$python" >/dev/null || refuse "no $$python here (install it, or set FEDKRSO_PYTHON)"
[ "$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$python" ] || refuse "$$python is not Python $python"

# Before anything of it runs: is it what was made?
sha256sum --check --quiet --strict SHA256SUMS || refuse "the bundle is damaged (copy it again)"

"$$python" -m venv $site "$$prefix" || refuse "no environment could be made in $$prefix (python$python-venv must be installed, and the folder writable)"
"$$prefix/bin/python" -m pip --isolated --disable-pip-version-check --quiet install --no-index --no-deps --no-cache-dir --find-links wheels \
    --require-hashes --requirement requirements.txt
[ -n "$site" ] || "$$prefix/bin/python" -m pip --isolated --disable-pip-version-check check >/dev/null || refuse "the wheels do not fit each other"
"$$prefix/bin/fedkrso" client bundle --verify . >/dev/null

if [ -n "$${FEDKRSO_ONLY_PROGRAM:-}" ]; then
    echo "installed: $$prefix/bin/fedkrso"
    exit 0
fi
exec "$$prefix/bin/fedkrso" client install --from node $arguments "$$@"
