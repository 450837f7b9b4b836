#!/usr/bin/env bash
# Trains one run on several nodes under SLURM, and resumes it by itself after preemption or a time limit.
#
#     sbatch examples/slurm.sh transformer
#
# Run `dvc repro prepare` first, in the project's folder, on a file system that all nodes share. SLURM starts the
# processes: set `--ntasks-per-node` and `--gpus-per-node` to the number of GPUs per node.
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
if [ "$status" -eq 75 ]; then # a signal stopped it and its state is saved: the same job resumes
    scontrol requeue "$SLURM_JOB_ID"
elif [ "$status" -eq 0 ]; then
    dvc commit --force "train@$run"
fi
exit "$status"
