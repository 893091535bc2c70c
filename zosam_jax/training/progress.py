"""Where a run stands, and what each of its epochs came to."""

import math
from typing import NamedTuple


class EpochRecord(NamedTuple):
    """One line of metrics.jsonl. Accuracies are fractions, NaN where the options skip them.

    Attributes:
      round: 0, or how often the network was pruned before this training (lth).
      epoch, step: epochs and steps completed, on the schedule.
      train_loss, train_accuracy: means over the epoch as the steps saw them: of augmented images,
        the loss at θ+ε where the optimizer perturbs; the accuracy likewise, but SAM's at θ, whose
        pass comes first, and of images mixed by mixup or CutMix as if they were the first one.
      test_accuracy: at the end of the epoch.
      validation_accuracy, validation_loss: likewise, on the images held out.
      test_loss: the mean loss on the test images, at the same time.
      ema_test_accuracy: the test accuracy of the moving average of the weights, under the masks.
      ema_validation_accuracy: likewise, on the images held out.
      sparsity: the fraction of zeros among the maskable weights then.
      training_cost: MACs since the start of the run, earlier rounds included, in epochs
        of the dense network with SGD (see `training.build.Cost`).
      bad_steps: steps of this epoch whose loss was not finite.
      seconds: since the start of the run, compilation included; interruptions not.
      images_per_second: of this epoch's training steps.
      data_wait: the share of this epoch's time in which the loop waited for batches.
      rho_used, epsilon_norm, slope, ascent_gain, plain_step: means of
        `zosam_jax.transform.Diagnostics` over the steps of the epoch that know them; NaN where
        none does.
    """

    round: int
    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    validation_accuracy: float
    validation_loss: float
    test_loss: float
    ema_test_accuracy: float
    sparsity: float
    training_cost: float
    bad_steps: int
    seconds: float
    images_per_second: float
    data_wait: float
    rho_used: float = math.nan
    epsilon_norm: float = math.nan
    slope: float = math.nan
    ascent_gain: float = math.nan
    plain_step: float = math.nan
    ema_validation_accuracy: float = math.nan

    @property
    def score(self) -> float:
        """By what the best epoch is chosen, between 0 and 1.

        The validation accuracy, without one the test accuracy; where targets are no labels, a
        falling function of the loss, on the same images.
        """
        known = [x for x in (self.validation_accuracy, self.test_accuracy) if not math.isnan(x)]
        held_out = not math.isnan(self.validation_loss)
        loss = self.validation_loss if held_out else self.test_loss
        of_loss = 0.0 if math.isnan(loss) else math.atan2(1.0, loss) / math.pi
        return known[0] if known else of_loss


class Progress(NamedTuple):
    """Where a run stands, beside its RunState; what a checkpoint has to know.

    Attributes:
      round: as in `EpochRecord`.
      training: how many trainings were completed before this one; lth makes several.
      under_way: whether that training has begun (lth).
      epoch: completed epochs, on the schedule.
      step: steps completed in the running epoch.
      total_steps: steps since the start of the run, over all trainings.
      records: lines of metrics.jsonl.
      best: the best score so far of this training.
      cost: training cost so far, in steps of the dense network with SGD.
      dense_gradients: mask updates with a dense gradient, before this epoch.
      seconds: spent so far.
      kept: where units have been removed from the network, the numbers of those that are left, by
        the name of their group.
    """

    round: int = 0
    training: int = 0
    under_way: bool = False
    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    records: int = 0
    best: float = -1.0
    cost: float = 0.0
    dense_gradients: int = 0
    seconds: float = 0.0
    kept: dict[str, list[int]] | None = None
