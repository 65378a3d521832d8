#!/bin/sh
# The paper's two data sets:  sh data_generation.sh [SPATIAL_ROOT TEMPORAL_ROOT]
# Sizes 10 20 40 80 at velocity 0.2, 500 recordings each; velocities 0.16 0.32 0.64 1.28 at random size, 2000 each.
# What the published script does not say: whether the sizes of the second set changed while a recording ran. Here
# they are constant; TEMPORAL_SCALES=changing makes the other. Other settings: SPATIAL_N, TEMPORAL_N (recordings), and
# OPTIONS for nrf generate_data, e.g. OPTIONS="--generator clean --workers 4". An interrupted call resumes where it stopped.
set -eu

[ $# -eq 0 ] || [ $# -eq 2 ] || { echo "usage: sh data_generation.sh [SPATIAL_ROOT TEMPORAL_ROOT]" >&2; exit 2; }
spatial=${1:-data/spatial}
temporal=${2:-data/temporal}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$python" ] || python=${PYTHON:-python3}

# shellcheck disable=SC2086
"$python" "$here/nrf" generate_data "${SPATIAL_N:-500}" "$spatial" --generator published \
    --scales 10 20 40 80 --velocities 0.2 ${OPTIONS:-}
# shellcheck disable=SC2086
"$python" "$here/nrf" generate_data "${TEMPORAL_N:-2000}" "$temporal" --generator published \
    --scales "${TEMPORAL_SCALES:-random}" --velocities 0.16 0.32 0.64 1.28 ${OPTIONS:-}
