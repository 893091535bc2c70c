"""Descends the perturbed loss and its gap to the loss at once: GSAM's descent."""

from zosam_jax import trees
from zosam_jax.descent.base import (
    Descent,
    DescentResult,
    PerturbedPoint,
    change_across,
    clean_pass,
    perturbed,
    stateless,
)
from zosam_jax.errors import check_number


def surrogate_gap(alpha: float) -> Descent:
    """G − α g⊥ with g = ∇L(θ), G = ∇L(θ+ε) and g⊥ = g − ⟨g, Ĝ⟩ Ĝ, Ĝ = G / ‖G‖.

    One forward and one backward pass, besides the ascent's own at θ. Going against g⊥ raises L(θ)
    while it leaves L(θ+ε) as it is to first order, so that the gap between the two, the sharpness,
    closes. α = 0 is SAM.

    Args:
      alpha: α ≥ 0, the weight of the gap.

    Raises:
      ValueError, TypeError: at construction, for α out of range.
      TypeError: while tracing, with an ascent that does not take ∇L(θ).

    Reference: Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training,
      https://arxiv.org/abs/2203.08065
    """
    check_number("alpha", alpha, above=0.0, inclusive=True)

    def gradient(point: PerturbedPoint) -> DescentResult:
        found = point.objective.value_and_grad(perturbed(point.params, point.epsilon))
        if point.epsilon is None:
            return DescentResult(*found)
        clean = clean_pass(point.ascent, "surrogate_gap")
        # G has no part across itself: g⊥ is that of g − G, which is zero where ε is.
        across = change_across(found.gradient, clean.gradient, found.gradient, point.mask)
        return DescentResult(found.value, found.aux, trees.displace(found.gradient, across, -alpha))

    return stateless(gradient)
