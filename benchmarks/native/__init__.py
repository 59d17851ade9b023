"""Code without Keras that the zoo is compared with, written as each library's own users would.

`torch_code`, `jax_code` and `tensorflow_code` have the same functions: `training_step`, `generator`
and `sampler`, each of a workload of `benchmarks.workloads` and the zoo's weights by their paths.
"""
