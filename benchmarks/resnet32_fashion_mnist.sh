#!/usr/bin/env bash
# ResNet-32 at 95% sparsity by RigL on Fashion-MNIST, cut to what a CPU core does in an hour or two:
# 5,000 images of 14×14 pixels, 10 epochs. SGD, ZO-SAM and both controls, two seeds; a run that is
# there already is not run again, one that was stopped goes on. The table comes from
# benchmarks/run_table.py OUTPUT_DIR.
# usage: benchmarks/resnet32_fashion_mnist.sh DATA_DIR OUTPUT_DIR
set -euo pipefail
data=$1 output=$2
for seed in 0 1; do
  # ρ: for the random directions the study of sparse methods' choice; SAM's default, 0.01, is far
  # too much for so short a run.
  for cell in sgd:0 zo_sam:0.05 random_weight_perturbation:0.05 sam:0.01 sam:0.0025; do
    optimizer=${cell%:*} rho=${cell#*:} radius=()
    if [ "$optimizer" != sgd ]; then radius=(--rho "$rho"); fi
    zosam train --recipe "fashion_mnist-resnet32-rigl-95-$optimizer" \
      --data-dir "$data" --train-images 5000 --shrink 2 --no-crop-and-flip \
      --epochs 10 --evaluate-every 10 --batch-size 64 --schedule cosine --warmup 0.05 \
      "${radius[@]}" --seed "$seed" --mesh data=1 --output "$output/$optimizer-$rho-$seed"
  done
done
