"""Schema of the JSON file of reports, which `zoo report` reads."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from zoo.files.documents import Document
from zoo.parity.report import Report

Backend = Literal["tensorflow", "torch", "jax"]

_LAYERS_TITLE = re.compile(r"(inference|training) mode, \w+, \w+ and \w+")


class _Difference(Document):
    """Difference of two backends' accuracies; the file has further numbers."""

    model_config = ConfigDict(extra="ignore")

    between: tuple[Backend, Backend]
    difference: float
    interval: tuple[float, float]


class _Accuracy(Document):
    """Result of `compare_accuracies`."""

    test_accuracy: dict[Backend, list[float]]
    margin: float
    paired: bool = False
    pairs: Annotated[list[_Difference], Field(max_length=3)]


_CURVES = TypeAdapter(dict[str, dict[Backend, list[float]]])
_ACCURACY = TypeAdapter(_Accuracy)


def _check(report: Report) -> Report:
    """Checks the keys that the plots of a report rely on."""
    for title in report.layers:
        if not _LAYERS_TITLE.fullmatch(title):
            raise ValueError(
                "must have layers by mode, precision and backends, such as 'inference mode, "
                f"float32, torch and jax', not by {title[:60]!r}"
            )
    try:
        _CURVES.validate_python(report.curves)
        if report.accuracy:
            _ACCURACY.validate_python(report.accuracy, strict=False)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"]))
        raise ValueError(
            f"must have the curves and accuracies of a check, but {key[:60]}: {fault['msg']}"
        ) from error
    return report


Reports = list[Annotated[Report, AfterValidator(_check)]]
