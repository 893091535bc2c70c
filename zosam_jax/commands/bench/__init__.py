"""`zosam bench`: what each optimizer's step costs, and how well its ascent is aimed."""

from zosam_jax.commands.bench.command import BenchConfig, Row, bench, run

__all__ = ["BenchConfig", "Row", "bench", "run"]
