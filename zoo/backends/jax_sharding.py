"""Weights divided among devices on JAX: `keras.distribution.ModelParallel` over one mesh."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import keras

_MODEL = "model"  # axis of the mesh

# Each device has some of the heads and of the feed-forward units. The products that follow add the
# devices' parts: Shoeybi et al., "Megatron-LM", 2019, section 3.
_LAYOUTS = {
    r"embedding/embeddings": (None, _MODEL),
    r".*attention/(query|key|value)/kernel": (None, _MODEL),
    r".*attention/(query|key|value)/bias": (_MODEL,),
    r".*attention/output/kernel": (_MODEL, None),
    r".*feed_forward/(up|gate)/kernel": (None, _MODEL),
    r".*feed_forward/(up|gate)/bias": (_MODEL,),
    r".*feed_forward/down/kernel": (_MODEL, None),
}


@contextmanager
def sharded_model(devices: int) -> Iterator[None]:
    with contextlib.suppress(RuntimeError):  # the devices of this process are known already
        jax.config.update("jax_num_cpu_devices", devices)
    available = jax.devices()
    if devices > len(available):
        raise ValueError(
            f"`devices` must be at most {len(available)}, the devices that JAX has in this "
            f"process. Received: devices={devices}"
        )
    names = [f"{device.platform}:{device.id}" for device in available[:devices]]
    mesh = keras.distribution.DeviceMesh((1, devices), ("batch", _MODEL), names)
    layouts = keras.distribution.LayoutMap(mesh)
    for path, axes in _LAYOUTS.items():
        layouts[path] = axes
    distribution = keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
    )
    with distribution.scope():
        yield
