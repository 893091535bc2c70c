#!/usr/bin/env bash
# ResNet-32 at 95% sparsity by RigL on Fashion-MNIST, cut to what a CPU core does in an hour: 5,000
# images of 14×14 pixels, 10 epochs. SGD, ZO-SAM and both controls, three seeds; a run that is there
# already is not run again, one that was stopped goes on. The table: benchmarks/run_table.py OUTPUT.
# usage: benchmarks/resnet32_fashion_mnist.sh DATA_DIR OUTPUT_DIR
set -euo pipefail
data=$1 output=$2
for seed in 0 1 2; do
  for optimizer in sgd zo_sam random_weight_perturbation sam; do
    rho=0.05
    if [ "$optimizer" = sam ]; then rho=0.01; fi
    zosam train --recipe "fashion_mnist-resnet32-rigl-95-$optimizer" \
      --data-dir "$data" --train-images 5000 --shrink 2 --no-crop-and-flip \
      --epochs 10 --evaluate-every 10 --batch-size 64 --schedule cosine --warmup 0.05 \
      --rho "$rho" --seed "$seed" --mesh data=1 --output "$output/$optimizer-$seed"
  done
done
