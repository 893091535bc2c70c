#!/usr/bin/env bash
# The evidence study, from tuning to its reports; what is finished is not run again.
#
#     benchmarks/evidence/run.sh DATA_DIR RUNS [CONTINUE WITH: tune sweep look report]
#
# DATA_DIR holds Fashion-MNIST's four IDX files, RUNS gets the run folders. About four hours of two
# cores. The radii in clean.toml and noisy.toml are those that the reports of tune.toml and
# tune_noisy.toml show to be best on the held-out images.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
data=$1 runs=$2
shift 2
for part in "${@:-tune sweep look report}"; do
    for step in $part; do
        case $step in
        tune | sweep)
            studies=$([ "$step" = tune ] && echo "tune tune_noisy" || echo "clean noisy")
            for study in $studies; do
                zosam sweep "$here/$study.toml" --data-dir "$data" --output "$runs/$study"
            done
            ;;
        look)
            zosam evaluate "$runs"/clean/*sparse=rigl* --images 1000
            zosam analyze "$runs"/clean/*sparse=rigl* --parts variance hessian sharpness surface \
                --images 768 --batch-size 256 --eigenvalues 3 --lanczos-steps 20 --samples 5 \
                --ascent-steps 5 --points 15 --plane-points 9
            ;;
        report)
            for study in tune tune_noisy clean noisy; do
                zosam report "$runs/$study" --output "$here/../results/evidence/$study"
            done
            ;;
        esac
    done
done
