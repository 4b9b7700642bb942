#!/bin/sh
# Pins every package for the CPU and the CUDA build, without index addresses: all of them, and those that the images
# need. Run by `make lock`.
set -eu
cd "$(dirname "$0")/.."
UV=${UV:-.cache/uv/bin/uv}

lock() { # name, further packages, what uv chooses from
    file="requirements/$1.txt" further=$2
    shift 2
    "$UV" pip compile pyproject.toml --quiet --python-version 3.11 "$@" --no-annotate --no-header \
        --no-emit-package tuneserve --output-file "$file.tmp"
    { echo "# Made by \`make lock\`; installed with --no-deps."; cat "$file.tmp"; echo "$further"; } \
        | sed '/^$/d; /excluded from the output/,$ { /^#/d }' > "$file"
    rm "$file.tmp"
}

all() { # extra, further packages
    lock "$1" "$2" --extra "$1" --extra fetch --extra answer --extra train --extra quantize --extra dev \
        --constraint requirements/pins.txt --constraint "requirements/pins-$1.txt"
}

images() { # extra, further packages for training, for serving, options: the same versions
    extra=$1 train=$2 serve=$3
    shift 3
    lock "train-$extra" "$train" --extra "$extra" --extra fetch --extra answer --extra train --extra quantize \
        --constraint "requirements/$extra.txt" "$@"
    lock "serve-$extra" "$serve" --extra "$extra" --extra fetch --extra answer --excludes requirements/unserved.txt \
        --constraint "requirements/$extra.txt" "$@"
}

# The plugin asks for a distribution named `vllm`, which the CPU build is not: it is added by hand, for the images with
# what it needs. Triton has no backend for CPUs, and Ninja, which builds FlashInfer's kernels on GPUs, no compiler there.
# A folder of CPU wheels, where pip knows one, must not stand in for the CUDA build.
PLUGIN="vllm-bnb-plugin==0.0.3"
(
    export UV_FIND_LINKS="${PIP_FIND_LINKS:-}"
    all cpu "$PLUGIN"
    images cpu "$PLUGIN" "$(grep '^bitsandbytes==' requirements/cpu.txt; echo "$PLUGIN")" --no-emit-package triton --no-emit-package ninja
)
all gpu ""
images gpu "" ""
