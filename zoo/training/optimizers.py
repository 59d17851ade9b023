"""Optimizers and learning rate schedules with equal results on every backend."""

from typing import Annotated, Any, Literal

import keras

from zoo.backends import backend
from zoo.validation import (
    MAX_COUNT,
    Count,
    Fraction,
    Index,
    NonNegative,
    Positive,
    Probability,
    Rule,
    number,
    validated,
    whole,
)

Tensor = Any


def _check_learning_rate(value: Any) -> Any:
    """Returns a number above 0 or a schedule. A compiled step would call a function only once."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value
    if isinstance(value, dict):  # a schedule in the configuration of a saved optimizer
        return keras.optimizers.schedules.deserialize(value)
    return number("(0, inf)").check(value)


LearningRate = Annotated[
    Any, Rule("a finite number above 0 or a learning rate schedule", _check_learning_rate)
]


@validated
def learning_rate_schedule(
    name: Literal["constant", "cosine", "warmup_cosine"],
    learning_rate: Positive,
    steps: Index,
    warmup_steps: Index = 100,
) -> Any:
    """Returns the learning rate of a run: a number or a Keras schedule.

    Args:
        name: "constant"; "cosine", which falls to 0; or "warmup_cosine", which rises from 0 and
            then falls to a tenth.
        learning_rate: Largest learning rate.
        steps: Number of steps of the run, for "constant" also 0.
        warmup_steps: Number of steps of the rise, at most a tenth of `steps`, but at least 1 where
            there are others.

    Raises:
        ValueError: If `name` is another, `learning_rate` is not above 0, or `steps` is 0 for a rate
            that falls.
    """
    if name == "constant":
        return learning_rate
    whole(1, MAX_COUNT).require("steps", steps)
    if name == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    rise = min(max(min(warmup_steps, steps // 10), 1), steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - rise, alpha=0.1, warmup_target=learning_rate, warmup_steps=rise
    )


@keras.saving.register_keras_serializable("zoo")
class Adam(backend.ForeachMixin, keras.optimizers.Adam):  # type: ignore[misc, name-defined]
    """Adam with an L2 penalty, as `torch.optim.Adam(weight_decay=l2)` defines it.

    With gradient g of the loss and weight w, at step t:

        g = g + l2·w
        m = beta_1·m + (1 - beta_1)·g
        v = beta_2·v + (1 - beta_2)·g²
        w = w - learning_rate · m/(1 - beta_1^t) / (sqrt(v/(1 - beta_2^t)) + epsilon)

    `keras.optimizers.Adam` differs in three places: its `weight_decay` shrinks the weight past the
    moments (as AdamW does), its epsilon is 1e-7, and it is added before the bias is corrected.

    Args:
        learning_rate: Step size, a number or a `keras.optimizers.schedules.LearningRateSchedule`.
        l2: Factor of the penalty's gradient, 0 or more.
        beta_1: Decay of the first moment, in (0, 1).
        beta_2: Decay of the second moment, in (0, 1).
        epsilon: Number added to the denominator.
        name: Name of the optimizer.
        clipnorm: Largest norm of the gradient of a variable; by default no limit.
        clipvalue: Largest absolute value of an element of a gradient; by default no limit.
        global_clipnorm: Largest norm of all gradients together; by default no limit.
        use_ema: Whether `fit` ends with moving averages of the weights.
        ema_momentum: Factor of the previous average, in [0, 1].
        ema_overwrite_frequency: Number of steps after which the averages replace the weights; by
            default only the end of `fit`.
        loss_scale_factor: Factor of the loss, by which the gradients are divided again.
        gradient_accumulation_steps: Number of steps, at least 2, whose mean gradient makes one
            update; by default each step makes one.
        **unsupported: `amsgrad` and `weight_decay` of `keras.optimizers.Adam`, which must be off.

    Raises:
        ValueError: If an argument is out of range, or `amsgrad` or `weight_decay` is on.

    Source: Kingma and Ba, "Adam", ICLR 2015.
    """

    @validated
    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        l2: NonNegative = 0.0,
        beta_1: Fraction = 0.9,
        beta_2: Fraction = 0.999,
        epsilon: Positive = 1e-8,
        name: str = "adam",
        clipnorm: Positive | None = None,
        clipvalue: Positive | None = None,
        global_clipnorm: Positive | None = None,
        use_ema: bool = False,
        ema_momentum: Probability = 0.99,
        ema_overwrite_frequency: Count | None = None,
        loss_scale_factor: Positive | None = None,
        gradient_accumulation_steps: Annotated[int, whole(2, MAX_COUNT)] | None = None,
        **unsupported: Any,
    ):
        for argument, value in unsupported.items():
            if argument not in ("amsgrad", "weight_decay"):
                raise TypeError(
                    f"{type(self).__name__}.__init__() got an unexpected keyword argument "
                    f"{argument!r}"
                )
            if value:
                raise ValueError(
                    f"`{argument}` is not offered; `l2` is `torch.optim.Adam`'s weight decay. "
                    f"Received: {argument}={value}"
                )
        super().__init__(
            learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, name=name,
            clipnorm=clipnorm, clipvalue=clipvalue, global_clipnorm=global_clipnorm,
            use_ema=use_ema, ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency, loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )  # fmt: skip
        self.l2 = l2
        # Step size and epsilon by dtype. The variables of a step share them.
        self.bias_corrections: dict[str, tuple[Tensor, Tensor]] = {}

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Updates the variables, as `keras.optimizers.Optimizer.apply` does."""
        try:
            super().apply(grads, trainable_variables)
        finally:
            self.bias_corrections.clear()

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        index = self._get_variable_index(variable)
        moments = self._momentums[index], self._velocities[index]
        backend.adam_update(self, gradient, variable, *moments, learning_rate)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for unused in ("amsgrad", "weight_decay"):
            config.pop(unused)
        return {**config, "l2": self.l2}


@keras.saving.register_keras_serializable("zoo")
class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW` defines it.

        w = w - learning_rate · decay · w          before Adam's step

    Only tables and matrices shrink; biases and the scales of normalisations do not.

    Args:
        learning_rate: Step size, a number or a `keras.optimizers.schedules.LearningRateSchedule`.
        decay: Share of the learning rate by which weights shrink at each step, 0 or more.
        **kwargs: Arguments of `Adam`.

    Raises:
        ValueError: If an argument is out of range.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    @validated
    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        decay: NonNegative = 0.1,
        name: str = "adamw",
        **kwargs: Any,
    ):
        super().__init__(learning_rate, name=name, **kwargs)
        self.weight_decay = decay  # Keras' own optimizer does the rest

    def _use_weight_decay(self, variable: Any) -> bool:
        return len(variable.shape) > 1

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("weight_decay", None)
        return {**config, "decay": self.weight_decay}
