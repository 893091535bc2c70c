"""Every cell of the paper is a recipe, and every recipe can be trained."""

import re

import pytest

from zosam_jax import cli, recipes
from zosam_jax.training import build
from zosam_jax.training.config import TrainConfig

EVERY = {recipe.name: recipe for recipe in recipes.every()}


def test_names_are_unique_and_those_of_the_configurations():
    assert len(EVERY) == len(list(recipes.every()))
    assert all(recipe.config.recipe == name for name, recipe in EVERY.items())


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("model", ["resnet32", "resnet50"])
def test_the_paper_s_cifar_tables_are_complete(dataset, model):
    methods = ("lth", "snip", "grasp", "synflow", "set", "dsr", "rigl", "mest-em", "mest-ems")
    for sparse in methods:
        for percent in (90, 95, 98):
            for optimizer in ("sgd", "sam", "random_weight_perturbation", "zo_sam"):
                config = EVERY[f"{dataset}-{model}-{sparse}-{percent}-{optimizer}"].config
                assert config.dataset == dataset
                assert config.sparse == sparse.split("-")[0]
                assert config.mest_soft_bound == (sparse == "mest-ems")
                assert (config.sparsity, config.optimizer) == (percent / 100, optimizer)


def test_the_paper_s_imagenet_table_is_complete():
    for model in ("deit-tiny", "deit-small"):
        for percent in (50, 70):
            for optimizer in ("adamw", "zo_sam"):
                config = EVERY[f"imagenet-{model}-svite-{percent}-{optimizer}"].config
                assert build.schedule(config, 600_000)(5000) == pytest.approx(5e-4, rel=1e-3)
                assert (config.stream, config.base_optimizer) == (True, "adamw")


def test_published_accuracies_stand_where_they_were_published():
    assert EVERY["cifar10-resnet32-rigl-95-sgd"].expected == 91.83
    assert EVERY["cifar100-resnet32-mest-ems-98-sgd"].expected == 67.16
    assert EVERY["cifar10-resnet32-rigl-95-zo_sam"].expected is None


@pytest.mark.parametrize("file", recipes.FILES)
def test_a_file_opens_with_its_command_its_machine_and_what_to_expect(file):
    named = re.findall(r"--recipe (\S+)", file.__doc__)
    assert named
    assert set(named) <= set(EVERY)
    assert "Run on:" in file.__doc__
    assert "Expected:" in file.__doc__


def test_an_unknown_recipe_ends_with_the_nearest_names(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--recipe", "cifar10-resnet32-rigl-95"])
    assert caught.value.code == 2
    assert "cifar10-resnet32-rigl-95-sgd" in capsys.readouterr().out


def test_the_list_can_be_narrowed_down(capsys):
    cli.main(["recipes", "deit-small"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "svite" in line]
    assert len(lines) == 8
    # Piped to where there are 80 columns, and whole all the same.
    longest = "imagenet-deit-small-svite-70-random_weight_perturbation"
    assert longest in [line.split()[0] for line in lines]


def test_a_list_of_nothing_says_so(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["recipes", "deit-huge"])
    assert caught.value.code == 2
    assert "no recipe's name contains 'deit-huge'" in capsys.readouterr().out


def test_options_beside_a_recipe_replace_its_own():
    name = "digits-resnet8-mest-ems-95-sgd"
    words = ["--model", "lenet-300-100", "--train-images", "128"]
    _, config = cli._parse(["train", f"--recipe={name}", *words])
    assert config == TrainConfig(
        recipe=name,
        model="lenet-300-100",
        train_images=128,
        sparse="mest",
        mest_soft_bound=True,
        sparsity=0.95,
        optimizer="sgd",
    )


def test_recipes_give_a_radius_its_warmup_where_there_is_one():
    for recipe in EVERY.values():
        assert recipe.config.rho_warmup is None or build.has_rho(recipe.config.optimizer)
        build.check(recipe.config, [recipe.config.optimizer])
