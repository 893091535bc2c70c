"""One training step for Flax Linen (`linen`), Flax NNX (`nnx`) and plain loops (`step`)."""
