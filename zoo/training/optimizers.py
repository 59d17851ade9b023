"""Optimizers and learning rate schedules with equal results on every backend."""

from typing import Any

import keras

from zoo.backends import backend

Tensor = Any


def learning_rate_schedule(
    name: str, learning_rate: float, steps: int, warmup_steps: int = 100
) -> Any:
    """Returns the learning rate of a run: a number or a Keras schedule.

    Args:
        name: "constant"; "cosine", which falls to 0; or "warmup_cosine", which rises from 0 and
            then falls to a tenth.
        learning_rate: Largest learning rate.
        steps: Number of steps of the run.
        warmup_steps: Number of steps of the rise, at most a tenth of `steps`.

    Raises:
        ValueError: If `name` is another, or `learning_rate` is not above 0.
    """
    if not learning_rate > 0:
        raise ValueError(
            f"`learning_rate` must be above 0. Received: learning_rate={learning_rate}"
        )
    if name == "constant":
        return learning_rate
    if name == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    if name == "warmup_cosine":
        rise = max(min(warmup_steps, steps // 10), 1)
        return keras.optimizers.schedules.CosineDecay(
            0.0, steps - rise, alpha=0.1, warmup_target=learning_rate, warmup_steps=rise
        )
    raise ValueError(
        f"`schedule` must be constant, cosine or warmup_cosine. Received: schedule={name}"
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
        **kwargs: Arguments of `keras.optimizers.Optimizer`, such as `global_clipnorm`.

    Raises:
        ValueError: If an argument is out of range, or `amsgrad` or `weight_decay` is given.

    Source: Kingma and Ba, "Adam", ICLR 2015.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        l2: float = 0.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        name: str = "adam",
        **kwargs: Any,
    ):
        if isinstance(learning_rate, int | float):
            learning_rate_schedule("constant", learning_rate, 0)
        for argument in ("amsgrad", "weight_decay"):
            if kwargs.get(argument):
                raise ValueError(
                    f"`{argument}` is not offered; `l2` is `torch.optim.Adam`'s weight decay. "
                    f"Received: {argument}={kwargs[argument]}"
                )
        if not l2 >= 0:
            raise ValueError(f"`l2` must be 0 or more. Received: l2={l2}")
        for argument, value in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0 < value < 1:
                raise ValueError(f"`{argument}` must lie in (0, 1). Received: {argument}={value}")
        super().__init__(
            learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, name=name, **kwargs
        )
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

    def __init__(
        self, learning_rate: Any = 1e-3, decay: float = 0.1, name: str = "adamw", **kwargs: Any
    ):
        if not decay >= 0:
            raise ValueError(f"`decay` must be 0 or more. Received: decay={decay}")
        super().__init__(learning_rate, name=name, **kwargs)
        self.weight_decay = decay  # Keras' own optimizer does the rest

    def _use_weight_decay(self, variable: Any) -> bool:
        return len(variable.shape) > 1

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("weight_decay", None)
        return {**config, "decay": self.weight_decay}
