#!/usr/bin/env bash
# One training on several nodes under SLURM, resumed by itself after preemption and time limits.
#
#     sbatch examples/slurm.sh transformer
#
# Run it in the project's folder, on a file system that all nodes share; `dvc repro prepare` comes first. SLURM starts
# the processes, and `--ntasks-per-node` is the number of GPUs of a node: nothing else needs to be set.
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -uo pipefail

run=${1:?usage: sbatch examples/slurm.sh <run of params.yaml>}
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

srun --kill-on-bad-exit=0 python -m pipeline.stages train "$run"
status=$?
if [ "$status" -eq 75 ]; then # stopped by a signal, and saved: the same job goes on from there
    scontrol requeue "$SLURM_JOB_ID"
elif [ "$status" -eq 0 ]; then
    dvc commit --force "train@$run"
fi
exit "$status"
