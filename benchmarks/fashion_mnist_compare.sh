#!/usr/bin/env bash
# zosam compare on Fashion-MNIST as reported in the README: LeNet-300-100, 90% sparse, 10,000
# training images, clean and with 30% of the labels replaced, ρ tuned on held-out images.
#     benchmarks/fashion_mnist_compare.sh DATA_DIR OUTPUT_DIR       (about half an hour on 2 cores)
set -euo pipefail
data=$1 output=$2
for radius in global layerwise; do
  for noise in 0 0.3; do
    zosam compare --dataset fashion-mnist --data-dir "$data" --train-images 10000 \
      --label-noise "$noise" --model lenet-300-100 --sparsity 0.9 --epochs 30 --batch-size 128 \
      --radius "$radius" --rho-warmup 0 --tune --seeds 5 --output "$output/noise-$noise-$radius"
  done
done
