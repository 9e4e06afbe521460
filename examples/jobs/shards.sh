#!/bin/sh
# A big run in parts, on machines that know nothing of each other: one part a machine, one report over all.
#
#   DATA=cifar10 CLASSIFIER=resnet56@FILE DENOISER=cifar10 PART=0 PARTS=3 sh examples/jobs/shards.sh   # PART = 0, 1, 2
#   sh examples/jobs/shards.sh                                                       # where all the folders are
#
# Noise belongs to the image, so that each image's counts are those of the run in one piece.
set -eu
OUT=${OUT:-shards} SIGMA=${SIGMA:-0.5} N0=${N0:-100} N=${N:-10000} LAST=${LAST:-10000}

if [ -n "${PART:-}" ]; then
    : "${DATA:?} ${CLASSIFIER:?} ${DENOISER:?} ${PARTS:?}"
    diffproof certify --data "$DATA" --indices "$PART:$LAST:$PARTS" --classifier "$CLASSIFIER" --denoiser "$DENOISER" \
        --defense densepure:steps=2,votes=10 --sigma "$SIGMA" --n0 "$N0" --n "$N" --out "$OUT/part-$PART"
else
    diffproof report "$OUT"/part-* --out "$OUT/report"
fi
