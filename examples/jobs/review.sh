#!/bin/sh
# A reviewer with a run folder that somebody sent: what it says, whether it adds up, whether it can be drawn again.
#
#   RUN=their-run/ sh examples/jobs/review.sh
#   RUN=their-run/ DATA=my-copy/ CLASSIFIER=my-file DENOISER=my-file sh examples/jobs/review.sh
#
# The first needs no data and no networks, and opens nothing that the folder names.
set -eu
: "${RUN:?}"
OUT=${OUT:-review}

diffproof verify "$RUN" --counts
diffproof report "$RUN" --out "$OUT" --force
diffproof export "$RUN" --format csv --out "$OUT/images.csv" --force
if [ -n "${DATA:-}" ]; then
    diffproof verify "$RUN" --data "$DATA" --classifier "${CLASSIFIER:?}" ${DENOISER:+--denoiser "$DENOISER"} --resample 3
fi
