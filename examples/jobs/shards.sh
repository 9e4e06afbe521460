#!/bin/sh
# A big run in shards, on machines that know nothing of each other: one shard a machine, then all merged to one run.
#
#   DATA=cifar10 CLASSIFIER=resnet56@FILE DENOISER=cifar10 SEED=… PART=0 PARTS=3 sh examples/jobs/shards.sh   # PART = 0, 1, 2
#   sh examples/jobs/shards.sh                                                       # where all the folders are
#
# Noise belongs to seed and image, so that the merged run is the one that one machine would have made.
# SEED: one for all shards, drawn for the run: od -An -N8 -tu8 /dev/urandom
set -eu
OUT=${OUT:-shards} SIGMA=${SIGMA:-0.5} N0=${N0:-100} N=${N:-10000} LAST=${LAST:-10000}

if [ -n "${PART:-}" ]; then
    : "${DATA:?} ${CLASSIFIER:?} ${DENOISER:?} ${PARTS:?} ${SEED:?}"
    diffproof certify --data "$DATA" --indices "0:$LAST" --classifier "$CLASSIFIER" --denoiser "$DENOISER" \
        --defense densepure:steps=2,votes=10 --sigma "$SIGMA" --n0 "$N0" --n "$N" \
        --seed $SEED --shard "$PART/$PARTS" --out "$OUT/part-$PART"
else
    diffproof merge "$OUT/whole" "$OUT"/part-*
    diffproof report "$OUT/whole" --out "$OUT/report" --force
fi
