#!/usr/bin/env bash
# One stage of the training, unattended, on every GPU of a machine: device.sh autoencoder|diffusion MINUTES [ARGUMENTS of
# train.py]. Reads ../data beside this folder or $DATA; writes to $OUT. If several processes cannot work together, one
# goes on alone for the time that is left.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
stage=$1 minutes=$2
shift 2
: "${OUT:?the folder to write to}"
export DATA=${DATA:-$here/../data} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=4 MASTER_ADDR=127.0.0.1
python=${PYTHON:-python3}
gpus=${GPUS:-$($python -c "import torch; print(max(1, torch.cuda.device_count()))")}
begin=$SECONDS
pids=()
trap 'kill "${pids[@]}" 2>/dev/null' EXIT

train() {  # PROCESSES MINUTES [ARGUMENTS]
  local count=$1 minutes=$2 rank failed=0
  shift 2
  pids=()
  for ((rank = 0; rank < count; ++rank)); do
    RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$count MASTER_PORT=$((29500 + port)) \
      $python "$here/train.py" "$stage" --data "$DATA" --out "$OUT" --minutes "$minutes" "$@" &
    pids+=($!)
  done
  for ((rank = 0; rank < count; ++rank)); do
    wait -n || { failed=1; break; }
  done
  [ "$failed" = 0 ] || kill "${pids[@]}" 2>/dev/null
  wait
  return $failed
}

port=$((RANDOM % 1000))
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null
train "$gpus" "$minutes" "$@" && { echo "done after $((SECONDS - begin)) s"; exit 0; }
spent=$((SECONDS - begin))
left=$($python -c "print(max(0, $minutes - $spent / 60))")
echo "stopped after $spent s; $left minutes are left"
[ "$gpus" -gt 1 ] && $python -c "exit($left < 1)" || exit 1
port=$((port + 1))
again=()
name=$([ "$stage" = autoencoder ] && echo autoencoder || echo generator)
[ -f "$OUT/$name.safetensors" ] && again=(--resume "$OUT")
echo "going on with one process ${again[*]}"
train 1 "$left" "$@" "${again[@]}"
