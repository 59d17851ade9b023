"""Cross-backend check: compares a Keras model on TensorFlow, PyTorch and JAX.

    from zoo.parity import assert_backends_agree

    def test_my_model():
        assert_backends_agree(build_my_model)

One worker process per backend builds the model, loads the same weights and data, and writes its
results to files. `RUNGS` lists the comparisons and their tolerances.
"""

from zoo.parity.case import Case as Case
from zoo.parity.check import assert_backends_agree as assert_backends_agree
from zoo.parity.check import check as check
from zoo.parity.inputs import InputSpec as InputSpec
from zoo.parity.report import Report as Report
from zoo.parity.rungs import RUNGS as RUNGS
from zoo.parity.workers import Worker as Worker
from zoo.parity.workers import WorkerError as WorkerError
from zoo.parity.workers import Workers as Workers

__all__ = [
    "RUNGS",
    "Case",
    "InputSpec",
    "Report",
    "Worker",
    "WorkerError",
    "Workers",
    "assert_backends_agree",
    "check",
]
