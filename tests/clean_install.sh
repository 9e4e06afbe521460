#!/bin/sh
# Install a wheel in new environments, one for each Python, and use it there, away from the checkout:
#
#   sh tests/clean_install.sh dist/diffproof-*.whl python3.11 python3.12 python3.13
#
# PIP_CONSTRAINT=constraints.txt in the environment pins the versions; without it pip takes the newest.
set -eu
WHEEL=$(realpath "$1")
shift
[ -z "${PIP_CONSTRAINT:-}" ] || export PIP_CONSTRAINT="$(realpath "$PIP_CONSTRAINT")"
unset PYTHONPATH

for PYTHON; do
    PLACE=$(mktemp -d)
    "$PYTHON" -m venv "$PLACE/venv"
    "$PLACE/venv/bin/pip" install --quiet "$WHEEL"
    (
        cd "$PLACE"
        PATH="$PLACE/venv/bin:$PATH"
        diffproof --version
        diffproof doctor
        diffproof certify --data digits --indices 0:3 --denoiser digits --classifier digits --defense dds --sigma 0.25 \
            --n 200 --out run
        diffproof verify run --resample 1
        diffproof report run --out report
        diffproof attack --data digits --indices 0:2 --classifier digits --defense none --threat linf --budget 0.1 \
            --attack pgd:iterations=5 --out attacked
        python -c "import diffproof as dp; assert all(getattr(dp, name) for name in dp.__all__)"
    )
    echo "$PYTHON: the wheel works"
    rm -rf "$PLACE"
done
