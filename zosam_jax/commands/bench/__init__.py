"""`zosam bench`: what each optimizer's step costs, and the quality of its perturbation."""

from zosam_jax.commands.bench.command import BenchConfig, StepCost, bench, run

__all__ = ["BenchConfig", "StepCost", "bench", "run"]
