#!/usr/bin/env bash
# Starts a job over several machines under Slurm, with one torchrun on each.
#
#     sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh configs/mine.yaml learner.ranks=16 engine.count=16
#
# Submit it again with the same --job-name to continue the run. docs/nodes.md is the guide.
#SBATCH --job-name=darts
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail

: "${RANKS_PER_NODE:=${SLURM_GPUS_ON_NODE:-1}}"
: "${PORT:=$((20000 + SLURM_JOB_ID % 10000))}"
: "${OUT:=runs/${SLURM_JOB_NAME}}" # on a shared disk: a requeued job may get other machines
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

export RANKS_PER_NODE PORT OUT first
# The static rendezvous: with c10d whoever reaches its port runs code as you (docs/nodes.md).
# Slurm signals the steps; torchrun passes the signal on, and the run ends with a checkpoint.
srun --kill-on-bad-exit=1 bash -c 'exec torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" --node-rank="$SLURM_NODEID" \
  --nproc-per-node="$RANKS_PER_NODE" --max-restarts=3 \
  --master-addr="$first" --master-port="$PORT" \
  -m launch.torchrun "$@" --out "$OUT"' darts "$@"
