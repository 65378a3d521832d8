#!/usr/bin/env bash
# Every line of a config file as one run, here or on a cluster:  ./sweep.sh CONFIG DATA LOGS [flags];  ./sweep.sh --help
#     ./sweep.sh config_snn.txt DATA LOGS --seeds 0-4 --jobs 4
#     sbatch --array=1-16 --time=24:00:00 --gres=gpu:1 sweep.sh config_snn.txt DATA LOGS --seed 1
# SLURM's flags on the command line win over these: two minutes before the time limit the run saves, and is requeued.
#SBATCH --job-name=nrf
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -eu

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ ! -f "$here/nrf/commands/sweep.py" ] && [ -n "${SLURM_JOB_ID:-}" ]; then # SLURM runs a copy of this file, from elsewhere
    here=${SLURM_SUBMIT_DIR:-.}
    if [ ! -f "$here/nrf/commands/sweep.py" ]; then
        script=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/^ *Command=/{s/^ *Command=//;s/sweep\.sh.*//;p;q;}')
        here=${script:-.}
    fi
fi
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$python" ] || python=${PYTHON:-python3}
exec "$python" "$here/nrf" sweep "$@"
