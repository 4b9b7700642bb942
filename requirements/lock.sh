#!/bin/sh
# Pins every package for the CPU and the CUDA build, without index addresses. Run by `make lock`.
set -eu
cd "$(dirname "$0")/.."
UV=${UV:-.cache/uv/bin/uv}

lock() { # extra, further packages
    "$UV" pip compile pyproject.toml --quiet --python-version 3.11 \
        --extra "$1" --extra train --extra quantize --extra dev --constraint requirements/pins.txt \
        --constraint "requirements/pins-$1.txt" --no-annotate --no-header --no-emit-package tuneserve \
        --output-file "requirements/$1.tmp"
    { echo "# Made by \`make lock\`; installed with --no-deps."; cat "requirements/$1.tmp"; echo "$2"; } \
        | sed '/^$/d' > "requirements/$1.txt"
    rm "requirements/$1.tmp"
}

# The plugin asks for a distribution named `vllm`, which the CPU build is not: it is added by hand.
# A folder of CPU wheels, where pip knows one, must not stand in for the CUDA build.
UV_FIND_LINKS="${PIP_FIND_LINKS:-}" lock cpu "vllm-bnb-plugin==0.0.3"
lock gpu ""
