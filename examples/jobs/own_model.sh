#!/bin/sh
# Your own classifier and your own diffusion checkpoint: check the pictures, certify, compare, attack.
#
#   DATA=pictures/ CLASSIFIER=my_module:network@weights.pt DENOISER=my_diffusion/ sh examples/jobs/own_model.sh
#
# DATA: a folder of class folders, .parquet or .npz file, or Hub id. CLASSIFIER and DENOISER: see the tables of
# docs/models.md. An interrupted script goes on where it stopped.
set -eu
: "${DATA:?} ${CLASSIFIER:?} ${DENOISER:?}"
OUT=${OUT:-own-model} SIGMA=${SIGMA:-0.25} IMAGES=${IMAGES:-100} N0=${N0:-100} N=${N:-1000} ITERATIONS=${ITERATIONS:-40}

diffproof data "$DATA"
certify() {
    diffproof certify --data "$DATA" --limit "$IMAGES" --classifier "$CLASSIFIER" --sigma "$SIGMA" --n0 "$N0" --n "$N" "$@"
}
certify --defense none --out "$OUT/none"
certify --denoiser "$DENOISER" --defense dds --out "$OUT/dds"
certify --denoiser "$DENOISER" --defense densepure:steps=2,votes=10 --out "$OUT/densepure"
diffproof report "$OUT/none" "$OUT/dds" "$OUT/densepure" --out "$OUT/report" --force
diffproof verify "$OUT/densepure" --trust --resample 2

diffproof attack --data "$DATA" --limit "$IMAGES" --classifier "$CLASSIFIER" --denoiser "$DENOISER" \
    --defense diffpure:t_star=0.1,steps=10 --threat linf --budget 8/255 \
    --attack "pgd:iterations=$ITERATIONS,eot=4" --out "$OUT/attacked"
diffproof report "$OUT/attacked" --out "$OUT/attack-report" --force
