#!/bin/sh
# Five defences in a table as papers print it: the same images, threat and attack, exact gradients, EOT.
#
#   DATA=cifar10 CLASSIFIER=resnet56@FILE GUIDE=guide.safetensors DENOISER=cifar10 sh examples/jobs/paper_table.sh
#
# GUIDE: AGDM's robust classifier, which `diffproof train guide` makes.
set -eu
: "${DATA:?} ${CLASSIFIER:?} ${GUIDE:?} ${DENOISER:?}"
OUT=${OUT:-paper-table} IMAGES=${IMAGES:-64} BUDGET=${BUDGET:-8/255} ITERATIONS=${ITERATIONS:-200} EOT=${EOT:-20} STEPS=${STEPS:-20}

attack() {
    diffproof attack --data "$DATA" --limit "$IMAGES" --classifier "$CLASSIFIER" --threat linf --budget "$BUDGET" \
        --attack "pgd:iterations=$ITERATIONS,eot=$EOT" "$@"
}
attack --defense none --out "$OUT/none"
attack --denoiser "$DENOISER" --defense "diffpure:t_star=0.1,steps=$STEPS" --out "$OUT/diffpure"
attack --denoiser "$DENOISER" --defense "gdmp:rounds=2,steps=$STEPS" --out "$OUT/gdmp"
attack --denoiser "$DENOISER" --defense "gradual:t_star=[0.03,0.1],steps=[$STEPS,$STEPS]" --out "$OUT/gradual"
attack --denoiser "$DENOISER" --guide "$GUIDE" --defense "agdm:t_star=0.1,steps=$STEPS" --out "$OUT/agdm"
diffproof report "$OUT/none" "$OUT/diffpure" "$OUT/gdmp" "$OUT/gradual" "$OUT/agdm" --out "$OUT/report" --force
