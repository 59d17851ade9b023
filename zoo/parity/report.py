"""Report of a check: rows, statuses in order of severity, JSON serialization, table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from zoo.validation import FilePath, validated

Status = Literal["agrees", "rounding", "ruled out", "failed", "differs"]

_LARGEST_FILE = 1 << 25  # bytes; a report of a hundred layers has 200,000

# From the least to the most severe.
STATUSES: tuple[Status, ...] = ("ruled out", "agrees", "rounding", "failed", "differs")
STATUS_COLOURS = {
    "agrees": "green",
    "rounding": "yellow",
    "ruled out": "dim",
    "failed": "magenta",
    "differs": "red",
}


@dataclass(frozen=True)
class Row:
    """Row of the report: the result of one comparison.

    Attributes:
        comparison: Name of the comparison, such as "inference mode" or "initial weights".
        between: Names of the compared backends, two or one.
        precision: "float32", "float64", or empty if the precision is irrelevant.
        status: "agrees"; "rounding" (the distance exceeds its tolerance, but float64 agrees);
            "differs"; "ruled out" (not applicable to this model); "failed" (an error occurred).
        distance: Relative maximum distance; None for comparisons without a distance.
        tolerance: Largest distance that counts as agreement.
        where: Layer, weight or step of this distance; the first that differs, if one does.
        detail: Description of the result in words.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # of a file

    comparison: str
    between: tuple[str, ...]
    precision: str
    status: Status
    distance: float | None = None
    tolerance: float | None = None
    where: str = ""
    detail: str = ""

    def __str__(self) -> str:
        """Formats the row in one line."""
        text = f"{self.comparison}, {' and '.join(self.between)}"
        text += f", {self.precision}" if self.precision else ""
        text += f": {self.status}"
        if self.distance is not None:
            distance, tolerance = format_number(self.distance), format_number(self.tolerance)
            text += f", distance {distance} (tolerance {tolerance})"
        text += f" at {self.where}" if self.where else ""
        return text + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class RungReport:
    """Rows of one rung.

    Attributes:
        number: Number of the rung.
        title: Title of the rung.
        reason: Tolerances of the rung and their reasons.
        rows: Results of the comparisons.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # of a file

    number: int
    title: str
    reason: str
    rows: tuple[Row, ...]

    @property
    def status(self) -> Status:
        """Most severe status of the rows."""
        return max((row.status for row in self.rows), key=STATUSES.index, default="ruled out")


@dataclass(frozen=True)
class Report:
    """Report of a check.

    Attributes:
        model: Name of the model.
        environments: Versions and device of each backend.
        settings: Settings of the case, such as seed and batch size.
        notes: Restrictions of the check, such as layers whose randomness cannot be compared.
        rungs: Reports of the rungs, in order.
        layers: Path, distance and tolerance of the layers, for each mode, precision and pair of
            backends, such as "inference mode, float32, torch and jax".
        curves: Training losses by precision and backend.
        explanation: Sentences that explain the first difference; empty if the backends agree.
        accuracy: Result of `compare_accuracies` for trained models; empty if not measured.
        seconds: Duration of the check, in seconds.
    """

    model: str
    environments: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    rungs: tuple[RungReport, ...]
    layers: Mapping[str, Sequence[tuple[str, float, float]]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    explanation: tuple[str, ...] = ()
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rows(self) -> list[Row]:
        """Rows of all rungs."""
        return [row for rung in self.rungs for row in rung.rows]

    @property
    def agrees(self) -> bool:
        """Whether something was compared, no row differs and no row failed."""
        return self.exit_status == 0

    @property
    def exit_status(self) -> int:
        """Exit status of the command `check`.

        0 if the backends agree, 1 if a row differs, 2 if a comparison, or any, could not be made.
        """
        statuses = {row.status for row in self.rows}
        if "differs" in statuses:
            return 1
        return 2 if "failed" in statuses or statuses <= {"ruled out"} else 0

    @property
    def verdict(self) -> str:
        """Result of the check in words."""
        if all(row.status == "ruled out" for row in self.rows):
            return "could not be compared"
        if self.exit_status == 2:
            return "could not be checked wholly"
        return ("agrees", "differs")[self.exit_status]

    @property
    def failures(self) -> list[str]:
        """One line for each row that differs or failed, and for each failure that others share."""
        return [f"rung {rung.number} ({rung.title}): {row}" for rung, row in self._failed_rows()]

    def _failed_rows(self) -> list[tuple[RungReport, Row]]:
        rows: list[tuple[RungReport, Row]] = []
        failures = set()
        for rung in self.rungs:
            for row in rung.rows:
                if row.status == "differs":
                    rows.append((rung, row))
                elif row.status == "failed" and row.detail not in failures:
                    failures.add(row.detail)
                    rows.append((rung, row))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Converts the report to types that JSON supports; infinite distances become strings."""
        result: dict[str, Any] = _plain({**asdict(self), "verdict": self.verdict})
        return result

    def __rich__(self) -> Group:
        sentences = [Text(sentence, style="red") for sentence in self.explanation]
        return Group(*sentences, rung_table(self.model, self.rungs), *self._remarks())

    def _remarks(self) -> list[Text]:
        remarks = [Text(note, style="dim") for note in self.notes]
        style = {"differs": "red", "failed": "magenta"}
        remarks += [
            Text(f"rung {rung.number}: {row}", style=style[row.status])
            for rung, row in self._failed_rows()
        ]
        return remarks


def write_json(reports: Sequence[Report], path: Path) -> None:
    """Writes reports to a JSON file."""
    path.write_text(json.dumps([report.as_dict() for report in reports], indent=1) + "\n", "utf-8")


@validated
def read_json(path: FilePath) -> list[Report]:
    """Reads the reports from a file that `write_json` wrote.

    Raises:
        ValueError: If the file is not there, or is no such file. The text names the key.
        OSError: If the file cannot be read.
    """
    from zoo.files import documents  # loads pydantic, which the check itself does not need
    from zoo.parity.report_schema import Reports

    remedy = "Write the report again with `zoo check --json`"
    return documents.read(path, Reports, remedy, _LARGEST_FILE)


def rung_table(model: str, rungs: Sequence[RungReport]) -> Table:
    """Creates a table of the rungs with the most severe row of each."""
    table = Table("rung", "", "result", "distance", "tolerance", "where", title=model)
    for rung in rungs:
        row = most_severe(rung)
        status = Text(rung.status, style=STATUS_COLOURS[rung.status])
        cells = ("", "", "")
        if row:
            cells = (format_number(row.distance), format_number(row.tolerance), row.where)
        table.add_row(str(rung.number), rung.title, status, *cells)
    return table


def most_severe(rung: RungReport) -> Row | None:
    """Returns the first of the most severe rows; within tolerance, the one nearest to it."""
    if not rung.rows:
        return None
    rows = [row for row in rung.rows if row.status == rung.status]
    if rung.status not in ("agrees", "rounding"):
        return rows[0]

    def nearness(row: Row) -> float:
        return row.distance / row.tolerance if row.distance and row.tolerance else 0.0

    return max(rows, key=nearness)


def format_number(value: float | None) -> str:
    """Formats a distance with two digits, since further digits of a distance are meaningless."""
    return "" if value is None else f"{value:.1e}" if value else "0"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return value
