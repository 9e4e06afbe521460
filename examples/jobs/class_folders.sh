#!/bin/sh
# Class folders and a transformers model, but no diffusion model: train one on what is not certified, fine-tune, certify.
#
#   DATA=pictures/ MODEL=hf:my-vit SIZE=32 sh examples/jobs/class_folders.sh
#
# A tenth of the pictures is kept out of training, and only it is certified. Where class folders lie in train/ and
# test/, say SPLIT=train: then it is a tenth of train/. An interrupted script goes on where it stopped.
set -eu
: "${DATA:?} ${MODEL:?} ${SIZE:?}"
OUT=${OUT:-class-folders} SIGMA=${SIGMA:-0.25} N0=${N0:-100} N=${N:-1000} ITERATIONS=${ITERATIONS:-20000} FINETUNING=${FINETUNING:-2000} CHANNELS=${CHANNELS:-64,128,192}

mkdir -p "$OUT"
diffproof data "$DATA"
[ -e "$OUT/denoiser.safetensors" ] || diffproof train denoiser --data "$DATA" ${SPLIT:+--split "$SPLIT"} --image-size "$SIZE" \
    --holdout 0.1 --channels "$CHANNELS" --iterations "$ITERATIONS" --out "$OUT/denoiser.safetensors"
[ -e "$OUT/finetuned.safetensors" ] || diffproof finetune --classifier "$MODEL" --denoiser "$OUT/denoiser.safetensors" \
    --sigma "$SIGMA" --data "$DATA" ${SPLIT:+--split "$SPLIT"} --image-size "$SIZE" --holdout 0.1 --iterations "$FINETUNING" --out "$OUT/finetuned.safetensors"
for CLASSIFIER in "$MODEL" "$OUT/finetuned.safetensors"; do
    diffproof certify --data "$DATA" ${SPLIT:+--split "$SPLIT"} --image-size "$SIZE" --held-out \
        --classifier "$CLASSIFIER" --denoiser "$OUT/denoiser.safetensors" --defense dds --sigma "$SIGMA" --n0 "$N0" --n "$N" \
        --out "$OUT/$(basename "${CLASSIFIER#hf:}" .safetensors)"
done
diffproof report "$OUT/$(basename "${MODEL#hf:}")" "$OUT/finetuned" --out "$OUT/report" --force
