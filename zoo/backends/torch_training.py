"""Training on PyTorch: the step of `fit`, its batches, and optimizers with fused kernels."""

from collections.abc import Sequence
from typing import Any

import keras
import torch
from torch.optim.adam import adam

from zoo.backends import accumulation, cluster_parts, common, torch_cluster, torch_sharding

Tensor = Any


def create_variables(trainer: Any, batch: Any) -> None:
    if torch_sharding.is_sharding():
        torch_sharding.shard(trainer)
    common.create_variables(trainer, batch)


def as_dataset(trainer: Any, batches: Any, class_weight: Any = None) -> Any:
    if cluster_parts.is_joined():
        return cluster_parts.WorkerBatchesAdapter(batches, class_weight)
    return common.BatchesAdapter(batches, class_weight)


def gradients_of(loss: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Gradients of the weights, None for a weight that the loss does not depend on."""
    if not weights or not loss.requires_grad:
        return [None] * len(weights)
    return torch.autograd.grad(loss, weights, allow_unused=True)  # type: ignore[no-any-return]


def _sum_over_workers(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Adds the workers' gradients, unless FSDP has."""
    return gradients if torch_sharding.is_sharding() else torch_cluster.sum_over_workers(gradients)


class TrainerMixin(cluster_parts.SharedLosses):
    """Base class of `zoo.Trainer`: a training step that walks over the weights once.

    The step is eager, since compiling would ask the user for a C++ compiler. A weight that the
    loss does not depend on has the gradient 0, as under JAX.
    """

    def train_step(self: Any, data: Any) -> Any:
        if self.gradient_accumulation > 1:
            return self._accumulated_step(cluster_parts.own_part(data))
        if cluster_parts.is_joined():
            return self._train_as_worker(cluster_parts.own_part(data))
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        predictions = self(x, training=True)
        loss = self.compute_loss(x, y, predictions, sample_weight, training=True)
        gradients = self._gradients_of(loss)
        with torch.no_grad():
            self.optimizer.apply(gradients, self.trainable_variables)
            common.update_loss_metric(self, loss, len(keras.tree.flatten(x)[0]))
            return self.compute_metrics(x, y, predictions, sample_weight)

    def _gradients_of(self: Any, loss: Tensor) -> list[Tensor]:
        """Gradients of the loss as the optimizer takes them, of all trainable variables."""
        scaled = self.optimizer.scale_loss(loss)
        if torch_sharding.is_sharding():
            return torch_sharding.gradients_of(scaled, self.trainable_variables)
        weights = [variable.value for variable in self.trainable_variables]
        return [
            torch.zeros_like(weight) if gradient is None else gradient
            for gradient, weight in zip(gradients_of(scaled, weights), weights)
        ]

    def _accumulated_step(self: Any, part: cluster_parts.Part) -> Any:
        """One step of the optimizer, with the gradients of a batch that is computed in parts."""
        draws = [counter.value.clone() for counter in self.draw_counters]
        earlier = torch_cluster.reset_metrics(self)
        sums: Sequence[Tensor] = []
        gradients: Sequence[Tensor] = []
        for rows in part.split(self.gradient_accumulation):
            for counter, number in zip(self.draw_counters, draws):
                counter.assign(number)
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(rows.data)
            with (
                self.part_of_batch(rows.start, rows.rows, rows.total),
                accumulation.recorded_divisors() as divisors,
            ):
                predictions = self(x, training=True)
                loss = self.compute_loss(x, y, predictions, sample_weight, training=True)
            weight = rows.counted(divisors.weight(rows.count))
            loss = loss * weight
            terms = self._gradients_of(loss)
            with torch.no_grad():
                gradients = torch._foreach_add(gradients, terms) if gradients else terms
                self.compute_metrics(x, y, predictions, sample_weight)
                values = torch_cluster.reset_metrics(self)
                terms = [weight, loss.detach(), *map(rows.counted, values)]
                sums = torch._foreach_add(sums, terms) if sums else terms
            del predictions, loss, terms  # with the part's activations
        with torch.no_grad():
            if cluster_parts.is_joined():
                sums = torch_cluster.sum_over_workers(sums)
                gradients = _sum_over_workers(gradients)
            total, loss, *values = sums
            with torch_sharding.updating():
                self.optimizer.apply(torch._foreach_div(gradients, total), self.trainable_variables)
            torch_cluster.add_to_metrics(self, earlier, values)
            common.update_loss_metric(self, loss / total, part.total)
            return self.get_metrics_result()

    # -------------------------------------------------------------- as a worker of a cluster

    def _train_as_worker(self: Any, part: cluster_parts.Part) -> Any:
        earlier = torch_cluster.reset_metrics(self)
        predictions, loss = self._share_of_loss(part, training=True)
        gradients = _sum_over_workers(self._gradients_of(loss))
        with torch.no_grad():
            with torch_sharding.updating():
                self.optimizer.apply(gradients, self.trainable_variables)
            return self._update_global_metrics(part, earlier, predictions, loss)

    def test_step(self: Any, data: Any) -> Any:
        if not cluster_parts.is_joined():
            return super().test_step(data)  # type: ignore[misc]
        part = cluster_parts.own_part(data)
        earlier = torch_cluster.reset_metrics(self)
        return self._update_global_metrics(
            part, earlier, *self._share_of_loss(part, training=False)
        )

    def predict_step(self: Any, data: Any) -> Any:
        if not cluster_parts.is_joined():
            return super().predict_step(data)  # type: ignore[misc]
        part = cluster_parts.own_part(data)
        x, *_ = keras.utils.unpack_x_y_sample_weight(part.data)
        return torch_cluster.gather_rows(self(x, training=False), part)

    def _share_of_loss(self: Any, part: cluster_parts.Part, training: bool) -> tuple[Any, Tensor]:
        """Predictions for the worker's rows, and its share of the loss of the whole batch."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part.data)
        with (
            cluster_parts.computing(part),
            self.part_of_batch(part.start, part.rows, part.total),
        ):
            predictions = self(x, training=training)
            loss = self.compute_loss(x, y, predictions, sample_weight, training=training)
        return predictions, loss

    def _update_global_metrics(
        self: Any,
        part: cluster_parts.Part,
        earlier: list[Tensor],
        predictions: Any,
        loss: Tensor,
    ) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part.data)
        self.compute_metrics(x, y, predictions, sample_weight)
        values = [variable.value for variable in self.metrics_variables]
        shares = cluster_parts.metric_shares(self, part, values)
        loss, *sums = torch_cluster.sum_over_workers([loss.detach(), *shares])
        torch_cluster.add_to_metrics(self, earlier, sums)
        common.update_loss_metric(self, loss, part.total)
        return self.get_metrics_result()


# ------------------------------------------------------------------ optimizers
# With one operation for each of some hundred weights, Python's overhead exceeds the computation.


class ForeachMixin:
    """Base class of optimizers that clips, updates and averages all weights in a few calls."""

    def _clip_gradients(self: Any, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        limit = self.global_clipnorm
        if not limit or self.clipnorm:
            return super()._clip_gradients(gradients)  # type: ignore[misc, no-any-return]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # `norm - norm` makes the scale NaN if the norm is not finite, as in Keras.
        scale = limit * torch.clamp(1 / norm, max=1 / limit) + (norm - norm)
        return torch._foreach_mul(gradients, scale)  # type: ignore[no-any-return]

    def _backend_update_step(
        self: Any, gradients: Sequence[Tensor], variables: Sequence[Any], learning_rate: Tensor
    ) -> None:
        indices = [self._get_variable_index(variable) for variable in variables]
        momentums = [self._momentums[index] for index in indices]
        velocities = [self._velocities[index] for index in indices]
        _adam(self, gradients, variables, momentums, velocities, learning_rate)

    def _update_model_variables_moving_average(self: Any, variables: Sequence[Any]) -> None:
        weight = 1 - self.ema_momentum if int(self.iterations) else 1.0
        averages = [average.value for average in self._model_variables_moving_average]
        with torch.no_grad():
            torch._foreach_lerp_(averages, [variable.value for variable in variables], weight)


def adam_update(
    optimizer: Any,
    gradient: Tensor,
    variable: Any,
    momentum: Any,
    velocity: Any,
    learning_rate: Tensor,
) -> None:
    _adam(optimizer, [gradient], [variable], [momentum], [velocity], learning_rate)


def _adam(
    optimizer: Any,
    gradients: Sequence[Tensor],
    variables: Sequence[Any],
    momentums: Sequence[Any],
    velocities: Sequence[Any],
    learning_rate: Tensor,
) -> None:
    weights = [variable.value for variable in variables]
    steps = torch.full((len(weights),), float(optimizer.iterations))  # the kernel adds 1
    with torch.no_grad():
        adam(
            weights,
            # The kernel ignores strides: it assumes the same memory layout of all four lists.
            [g.to(weight.dtype).contiguous() for g, weight in zip(gradients, weights)],
            [momentum.value for momentum in momentums],
            [velocity.value for velocity in velocities],
            [],
            list(steps.to(weights[0].device).unbind()),
            fused=True,
            amsgrad=False,
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            lr=float(learning_rate),
            weight_decay=optimizer.l2,
            eps=optimizer.epsilon,
            maximize=False,
        )
