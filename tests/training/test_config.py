"""Options that cannot be right, or would do nothing, are refused by name."""

import dataclasses

import pytest

from zosam_jax import recipes
from zosam_jax.optimizers import RECORDS
from zosam_jax.training.applicable import check_applicable
from zosam_jax.training.config import ProblemConfig, TrainConfig, applicable, replacing


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"sparsity": 1.0}, "sparsity=1.0 must be below 1"),
        ({"rho": -1.0}, "rho=-1.0 must be a finite number at least 0"),
        ({"sparse_layers": "("}, "is not a regular expression"),
        ({"seed": -1}, "seed=-1 must be"),
        ({"schedule": "step", "milestones": (0.01, 0.5)}, "must come after warmup=0.05"),
        ({"final_learning_rate": 0.2}, "must be at most learning_rate=0.1"),
        ({"patch": 4}, "patch=4 goes with deit-micro, deit-tiny and deit-small"),
        ({"mixup": -1.0}, "mixup=-1.0 must be"),
        ({"accumulate": 3}, "accumulate=3 must divide batch_size=64"),
        ({"randaugment": True}, "randaugment=True needs stream"),
        ({"sparse": "synflow", "sparsity_distribution": "erk"}, "whose budget is global"),
        ({"sparse": "s2vite", "sparsity_distribution": "global"}, "the same part of every layer"),
        ({"sparse": "lth", "rewind_epochs": 20}, "rewind_epochs=20 must be at least 0"),
        ({"sparse": "lth", "lottery_levels": 0}, "lottery_levels=0"),
    ],
)
def test_impossible_options(options, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "sgd", "rho": 0.1}, "rho=0.1 goes with optimizers that perturb"),
        ({"optimizer": "adamw", "rho_warmup": 0.1}, "rho_warmup=0.1 goes with optimizers that"),
        ({"optimizer": "mezo", "rho": 0.1}, "rho=0.1 goes with optimizers that perturb"),
        ({"optimizer": "forward_gradient", "radius": "global"}, "radius='global' goes with"),
        ({"optimizer": "asam", "radius": "global"}, "whose radius can be chosen, not with asam"),
        ({"optimizer": "sam", "num_directions": 2}, "num_directions=2 goes with zo_sam, mezo"),
        ({"optimizer": "gsam", "fraction": 0.5}, "fraction=0.5 goes with sam, subbatch_sam"),
        (
            {"optimizer": "sgd", "batch_fraction": 0.5},
            "batch_fraction=0.5 goes with optimizers oth",
        ),
        ({"optimizer": "adamw", "momentum": 0.8}, "momentum=0.8 goes with sgd, not with adamw"),
        ({"base_optimizer": "adamw", "nesterov": True}, "nesterov=True goes with sgd, not with"),
        ({"optimizer": "adamw", "base_optimizer": "sgd"}, "base_optimizer='sgd' goes with"),
        ({"schedule": "step", "final_learning_rate": 0.01}, "final_learning_rate=0.01 goes with"),
        ({"milestones": (0.5,)}, "goes with schedule='step', not with schedule='cosine'"),
        ({"warmup": 0.0, "initial_learning_rate": 0.01}, "goes with a warmup"),
        ({"mest_soft_bound": True}, "mest_soft_bound=True goes with sparse='mest'"),
        ({"lottery_levels": 3}, "lottery_levels=3 goes with sparse='lth'"),
        ({"rewind_epochs": 1}, "rewind_epochs=1 goes with sparse='lth'"),
        ({"sparse": "none", "sparse_layers": "conv"}, "goes with a sparse network"),
        ({"sparsity": 0.0, "sparsity_distribution": "erk"}, "goes with a sparse network"),
        ({"sparse": "none", "sparsity": 0.5}, "sparsity=0.5 goes with a sparse method"),
    ],
)
def test_options_that_would_do_nothing(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**options)
    kept = applicable(options)
    assert len(kept) < len(options)
    TrainConfig(**kept)


def test_every_option_of_an_optimizer_is_refused_by_all_others():
    offered = {option for record in RECORDS.values() for option in record.options}
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert offered <= fields
    for name, record in RECORDS.items():
        for option in offered:
            given = dataclasses.replace(ProblemConfig(), **{option: _VALUES[option]})
            if option in record.options:
                check_applicable(given, (name,))
            else:
                with pytest.raises(ValueError, match=rf"{option}=.* not with {name}: leave it out"):
                    check_applicable(given, (name,))


_VALUES = {
    **dict.fromkeys(("num_directions", "interval", "microbatches"), 2),
    **dict.fromkeys(("fraction", "batch_fraction", "beta", "gamma", "delta"), 0.25),
    **dict.fromkeys(("extrapolation", "reach", "theta", "rho_max"), 0.25),
    **{"distribution": "sphere", "difference": "forward", "batching": "map"},
}


def test_of_several_optimizers_one_may_take_an_option():
    given = ProblemConfig(num_directions=2)
    check_applicable(given, ("sgd", "sam", "zo_sam"))
    with pytest.raises(ValueError, match="not with sgd, sam"):
        check_applicable(given, ("sgd", "sam"))


def test_a_recipe_can_be_started_from():
    recipe = recipes.get("digits-resnet8-rigl-90-sgd").config
    assert applicable({"rho": 0.1, "epochs": 3}, recipe) == {"epochs": 3}
    assert applicable({"rho": 0.1, "optimizer": "sam"}, recipe) == {"rho": 0.1, "optimizer": "sam"}


def test_options_replace_a_recipe_s_and_those_that_then_do_nothing():
    start = recipes.get("cifar10-resnet32-rigl-95-sam").config
    assert start.rho_warmup is not None
    changed = replacing(start, {"optimizer": "sgd"})
    assert (changed.optimizer, changed.rho_warmup, changed.sparse) == ("sgd", None, "rigl")
    with pytest.raises(ValueError, match=r"rho=0\.1 goes with"):
        replacing(start, {"optimizer": "sgd", "rho": 0.1})
