"""The cross-backend check: is a Keras model the same on TensorFlow, PyTorch and JAX?

    from zoo.parity import assert_backends_agree

    def test_my_model():
        assert_backends_agree(build_my_model)

One process a backend builds the model, takes the same weights and data, and writes down what it
gets; `RUNGS` says what is compared and how near is near enough.
"""

from zoo.parity.case import Case as Case
from zoo.parity.check import assert_backends_agree as assert_backends_agree
from zoo.parity.check import check as check
from zoo.parity.report import Report as Report
from zoo.parity.rungs import RUNGS as RUNGS
from zoo.parity.workers import Worker as Worker
from zoo.parity.workers import WorkerError as WorkerError
from zoo.parity.workers import Workers as Workers

__all__ = [
    "RUNGS",
    "Case",
    "Report",
    "Worker",
    "WorkerError",
    "Workers",
    "assert_backends_agree",
    "check",
]
