"""Weights divided among workers on PyTorch: FSDP2, `torch.distributed.fsdp.fully_shard`.

FSDP gathers the weights of a module before it is called, and frees them afterwards. It exchanges
the module's parameters to do so. Keras' variables would not notice, so they read their values from
those parameters here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from zoo.backends import cluster_parts, common, torch_cluster

Tensor = Any

shards_among_workers = True

_mesh: DeviceMesh | None = None  # of the workers, within `sharded_model`
_updating = False  # whether the values of variables are the parts of this worker
_alone = False  # whether this worker assigns values without the others


@contextmanager
def sharded_model(devices: int) -> Iterator[None]:
    global _mesh
    if not cluster_parts.is_joined():  # one device
        yield
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _mesh = init_device_mesh(device, (cluster_parts.place().num_workers,))
    try:
        yield
    finally:
        _mesh = None


def is_sharding() -> bool:
    """Whether the weights of trainers are divided among the workers."""
    return _mesh is not None


@contextmanager
def updating() -> Iterator[None]:
    """Context manager in which the value of a divided variable is a `DTensor`, for optimizers."""
    global _updating
    _updating = True
    try:
        yield
    finally:
        _updating = False


@contextmanager
def assigning_alone() -> Iterator[None]:
    """Context manager in which worker 0 assigns values that `broadcast_variables` then divides."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


class _DividedVariable(keras.Variable):  # type: ignore[misc]
    """A Keras variable of which each worker holds a part.

    Its value is the whole array. FSDP has gathered it while the module is being called; elsewhere
    the workers gather it, all of which must read it.

    Attributes:
        parameters: Parameters by path, which FSDP exchanges.
        assigned: Whole array that worker 0 has been assigned alone.
    """

    parameters: torch.nn.ParameterDict
    assigned: Tensor | None

    @property
    def _value(self) -> Tensor:
        parameter = self.parameters[self.path]
        if _updating or not isinstance(parameter, DTensor):
            return parameter
        # The workers' gradients of it, such as those of penalties, are added.
        return parameter.full_tensor(grad_placements=[Partial()])

    def _direct_assign(self, value: Tensor) -> None:
        if _alone:
            self.assigned = value.cpu()
            return
        with torch.no_grad():
            if not isinstance(value, DTensor):
                value = _own_part(value)
            self.parameters[self.path].copy_(value)


def _own_part(value: Tensor) -> DTensor:
    """This worker's part of a whole array, as FSDP divides it."""
    return distribute_tensor(value.detach(), _mesh, [Shard(0)], src_data_rank=None)


def _divide(variable: Any, parameters: torch.nn.ParameterDict) -> None:
    """Makes a variable read its value from these parameters."""
    variable.__class__ = _DividedVariable
    variable.parameters, variable.assigned = parameters, None
    del variable.__dict__["_value"]


def shard(trainer: Any) -> None:
    """Divides the weights of a trainer's network, and its optimizer's variables.

    FSDP gathers the weights of one block of the network at a time, and those outside of blocks for
    the whole network. Scalars and weights outside of the network stay as they are.

    Raises:
        ValueError: If the network has no weights yet, or the optimizer keeps other arrays than of
            the shapes of the weights.
    """
    network, optimizer = trainer.network, trainer.optimizer
    if any(isinstance(variable, _DividedVariable) for variable in trainer.variables):
        return
    if not network.built:
        raise ValueError(
            "`network` must have its weights before they are divided among devices. Received: "
            f"{network.name}, which is not built. Give it an input layer"
        )
    torch_cluster.broadcast_variables(network.variables)
    _shard_weights(network)
    add = keras.optimizers.Optimizer.add_variable_from_reference

    def add_part(self: Any, reference_variable: Any, *args: Any, **kwargs: Any) -> Any:
        variable = add(self, reference_variable, *args, **kwargs)
        if isinstance(reference_variable, _DividedVariable):
            part = _own_part(variable.value)
            _divide(variable, torch.nn.ParameterDict({variable.path: part}))
        return variable

    with common.replaced(keras.optimizers.Optimizer, add_variable_from_reference=add_part):
        optimizer.build(trainer.trainable_variables)
    for variable in optimizer.variables:
        if variable.shape and not isinstance(variable, _DividedVariable):
            raise ValueError(
                "The variables of an optimizer must have the shapes of the weights where these are "
                f"divided among devices. Received: {variable.path} of {type(optimizer).__name__}. "
                "Use `zoo.training.AdamW`"
            )


def _shard_weights(network: Any) -> None:
    for layer in network._flatten_layers():
        layer._torch_params = torch.nn.ParameterDict()  # instead of one for each layer above, too
    blocks = [layer for layer in network.layers if any(layer._flatten_layers(include_self=False))]
    for number, module in enumerate([*blocks, network]):
        variables = [
            variable
            for variable in module.trainable_variables
            if variable.shape and not isinstance(variable, _DividedVariable)
        ]
        if not variables and module is not network:
            continue
        for variable in variables:
            module._torch_params[variable.path] = variable.value
            _divide(variable, module._torch_params)
        if module is not network:
            # FSDP looks for it here; Keras, which saves attributes, does not.
            network.register_module(f"__block_{number}", module)
        kind = type(module)
        fully_shard(module, mesh=_mesh, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # the factor would need NCCL
        module.__class__ = kind  # by which Keras saves the layer


def broadcast_variables(variables: Sequence[Any]) -> None:
    """Assigns the values that worker 0 has, or was assigned alone, to the variables of all."""
    divided = [variable for variable in variables if isinstance(variable, _DividedVariable)]
    whole = [variable for variable in variables if not isinstance(variable, _DividedVariable)]
    torch_cluster.broadcast_variables(whole)
    # The parts of the others are those of worker 0's weights already.
    is_assigned = torch_cluster.broadcast(bytes(v.assigned is not None for v in divided))
    for variable in (v for v, assigned in zip(divided, is_assigned) if assigned):
        value = keras.ops.zeros(variable.shape, variable.dtype)
        if variable.assigned is not None:
            value.copy_(variable.assigned)
            variable.assigned = None
        torch_cluster.broadcast_tensor(value)
        variable.assign(value)


def gradients_of(loss: Tensor, variables: Sequence[Any]) -> list[Tensor]:
    """Gradients of the sum of all workers' losses, of which each worker gets its parts.

    All workers must call it after the same calls of modules.
    """
    loss.backward()
    with updating():
        weights = [variable.value for variable in variables]
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    for weight in weights:
        weight.grad = None
    whole = [n for n, gradient in enumerate(gradients) if not isinstance(gradient, DTensor)]
    sums = torch_cluster.sum_over_workers([gradients[n] for n in whole])
    for number, gradient in zip(whole, sums):
        gradients[number] = gradient
    return gradients
