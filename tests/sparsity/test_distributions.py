"""How a budget of weights is shared among layers."""

import itertools
import math

import pytest

from zosam_jax.sparsity import distributions


def resnet_32():
    """Shapes of the convolutions and the classifier of ResNet-32 for CIFAR-10."""
    shapes = {"stem": (3, 3, 3, 32)}
    for stage, (inputs, outputs) in enumerate([(32, 32), (32, 64), (64, 128)]):
        for block in range(5):
            first = (3, 3, inputs if block == 0 else outputs, outputs)
            shapes[f"{stage}.{block}.1"] = first
            shapes[f"{stage}.{block}.2"] = (3, 3, outputs, outputs)
        if inputs != outputs:
            shapes[f"{stage}.shortcut"] = (1, 1, inputs, outputs)
    return shapes | {"linear": (128, 10)}


def test_the_test_vector_has_the_published_number_of_weights():
    assert sum(math.prod(shape) for shape in resnet_32().values()) == 1_855_584


# Densities of the 32→32, 64→64 and 128→128 convolutions and the layers that stay dense, computed
# by hand from the rule of Evci et al.
RESNET_32 = {
    0.9: ((0.2896, 0.1386, 0.0677), {"stem", "1.shortcut", "linear"}),
    0.95: ((0.1419, 0.0679, 0.0332), {"linear"}),
    0.98: ((0.0560, 0.0268, 0.0131), set()),
}


@pytest.mark.parametrize("sparsity", RESNET_32)
def test_erk_on_resnet_32(sparsity):
    shapes, (densities, dense) = resnet_32(), RESNET_32[sparsity]
    kept = distributions.erdos_renyi_kernel(list(shapes.values()), sparsity)
    kept, sizes = dict(zip(shapes, kept, strict=True)), {k: math.prod(v) for k, v in shapes.items()}
    for stage, density in enumerate(densities):
        size = sizes[f"{stage}.3.2"]
        assert kept[f"{stage}.3.2"] == pytest.approx(density * size, abs=1 + 5e-5 * size)
    assert {name for name in shapes if kept[name] == sizes[name]} == dense


SHAPES = [(3, 3, 3, 16), (3, 3, 16, 32), (1, 1, 16, 32), (32, 10), (7, 5)]
every_distribution = pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)


@every_distribution
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 1 / 3, 0.5, 0.777, 0.9, 0.95])
def test_counts_add_up_to_the_budget_exactly(name, sparsity):
    sizes = [math.prod(shape) for shape in SHAPES]
    kept = distributions.get(name)(SHAPES, sparsity)
    assert sum(kept) == round((1 - sparsity) * sum(sizes))
    assert all(isinstance(k, int) and 0 < k <= size for k, size in zip(kept, sizes, strict=True))


@every_distribution
@pytest.mark.parametrize("shapes", [SHAPES, list(resnet_32().values()), [(1000, 1000), (3, 7)]])
def test_sparsity_zero_keeps_everything(name, shapes):
    kept = distributions.get(name)(shapes, 0.0)
    assert kept == [math.prod(shape) for shape in shapes]


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_uniform_gives_every_array_the_same_density(sparsity):
    kept = distributions.uniform(SHAPES, sparsity)
    for count, shape in zip(kept, SHAPES, strict=True):
        assert abs(count - (1 - sparsity) * math.prod(shape)) < 1


def test_erk_densities_are_proportional_to_dimensions():
    """(20 + 30)/(20·30) to (60 + 40)/(60·40) is two to one."""
    small, large = distributions.erdos_renyi_kernel([(20, 30), (60, 40)], 0.9)
    assert (small, large) == (100, 200)


@every_distribution
def test_counts_do_not_depend_on_anything_but_shapes_and_order_breaks_ties(name):
    """Three equal arrays and a budget that they cannot share: the first ones get the rest."""
    kept = distributions.get(name)([(4, 5)] * 3, 0.5 + 1 / 60)
    assert kept == [10, 10, 9]


def test_sparser_means_fewer_weights_in_every_array():
    shapes = list(resnet_32().values())
    levels = [distributions.erdos_renyi_kernel(shapes, s) for s in (0.5, 0.8, 0.9, 0.98)]
    for denser, sparser in itertools.pairwise(levels):
        assert all(a >= b for a, b in zip(denser, sparser, strict=True))


def test_a_function_is_a_distribution_too():
    def everything(shapes, sparsity):
        del sparsity
        return [math.prod(shape) for shape in shapes]

    assert distributions.get(everything) is everything
