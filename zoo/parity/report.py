"""What a check found: rows, their order of gravity, JSON and back, a table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

Status = Literal["agrees", "rounding", "ruled out", "failed", "differs"]

STATUSES: tuple[Status, ...] = (
    "ruled out",
    "agrees",
    "rounding",
    "failed",
    "differs",
)  # by gravity
COLOURS = {
    "agrees": "green",
    "rounding": "yellow",
    "ruled out": "dim",
    "failed": "magenta",
    "differs": "red",
}


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        what: is compared.
        between: the backends, two of them or one.
        precision: "float32", "float64", or empty where it does not matter.
        status: "agrees"; "rounding" (beyond the tolerance, but float64 agrees); "differs"; "ruled
            out" (cannot be asked of this model); "failed" (could not be found out).
        distance: measured, relative to the largest number; None where there is none to measure.
        tolerance: for it.
        where: the layer, weight or step with this distance; the first that differs if one does.
        detail: in words.
    """

    what: str
    between: tuple[str, ...]
    precision: str
    status: Status
    distance: float | None = None
    tolerance: float | None = None
    where: str = ""
    detail: str = ""

    def __str__(self) -> str:
        """One line, such as an assertion shows."""
        text = f"{self.what}, {' and '.join(self.between)}"
        text += f", {self.precision}" if self.precision else ""
        text += f": {self.status}"
        if self.distance is not None:
            text += f", {number(self.distance)} apart (tolerance {number(self.tolerance)})"
        text += f" at {self.where}" if self.where else ""
        return text + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class RungReport:
    """The rows of one rung."""

    number: int
    title: str
    reason: str
    rows: tuple[Row, ...]

    @property
    def status(self) -> Status:
        """The gravest of its rows."""
        return max((row.status for row in self.rows), key=STATUSES.index, default="ruled out")


@dataclass(frozen=True)
class Report:
    """The result of a check.

    Attributes:
        model: its name.
        environments: of each backend: versions and device.
        settings: seed, batch and the like.
        notes: what a reader has to know, such as layers whose randomness cannot be compared.
        rungs: in order.
        layers: distance and tolerance by layer, for each "inference, float32, torch and jax".
        curves: losses by backend, for each precision.
        accuracy: of trained models, for each backend and seed, where that was measured.
        seconds: the check took.
    """

    model: str
    environments: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]
    rungs: tuple[RungReport, ...]
    layers: Mapping[str, Sequence[tuple[str, float, float]]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rows(self) -> list[Row]:
        """Of all rungs."""
        return [row for rung in self.rungs for row in rung.rows]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs and nothing failed."""
        return self.exit_status == 0

    @property
    def exit_status(self) -> int:
        """0 if the backends agree, 1 if something differs, 2 if something could not be checked."""
        statuses = {row.status for row in self.rows}
        return 1 if "differs" in statuses else 2 if "failed" in statuses else 0

    @property
    def verdict(self) -> str:
        """In words."""
        if self.exit_status == 2:
            return "could not be checked wholly"
        return ("agrees", "differs")[self.exit_status]

    @property
    def troubles(self) -> list[str]:
        """A line for each row that differs or failed."""
        return [
            f"rung {rung.number} ({rung.title}): {row}"
            for rung in self.rungs
            for row in rung.rows
            if row.status in ("differs", "failed")
        ]

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold; infinite distances become the word."""
        result: dict[str, Any] = _plain({**asdict(self), "verdict": self.verdict})
        return result

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Report":
        """The way back."""
        data = {key: value for key, value in data.items() if key != "verdict"}
        rungs = [
            RungReport(
                **{
                    **rung,
                    "rows": tuple(
                        Row(**_numbers({**row, "between": tuple(row["between"])}))
                        for row in rung["rows"]
                    ),
                }
            )
            for rung in data["rungs"]
        ]
        layers = {
            title: [(path, float(found), float(allowed)) for path, found, allowed in points]
            for title, points in data["layers"].items()
        }
        curves = {
            precision: {name: [float(loss) for loss in losses] for name, losses in found.items()}
            for precision, found in data["curves"].items()
        }
        notes = tuple(data["notes"])
        return Report(
            **{**data, "rungs": tuple(rungs), "layers": layers, "curves": curves, "notes": notes}
        )

    def __rich__(self) -> Group:
        return Group(rung_table(self.model, self.rungs), *self._remarks())

    def _remarks(self) -> list[Text]:
        remarks = [Text(note, style="dim") for note in self.notes]
        style = {"differs": "red", "failed": "magenta"}
        remarks += [
            Text(f"rung {rung.number}: {row}", style=style[row.status])
            for rung in self.rungs
            for row in rung.rows
            if row.status in style
        ]
        return remarks


def write_json(reports: Sequence[Report], path: Path) -> None:
    """Writes reports, which `read_json` reads."""
    path.write_text(json.dumps([report.as_dict() for report in reports], indent=1) + "\n")


def read_json(path: Path) -> list[Report]:
    """The reports in a file of `write_json`."""
    return [Report.from_dict(data) for data in json.loads(path.read_text())]


def rung_table(model: str, rungs: Sequence[RungReport]) -> Table:
    """A line a rung: its gravest status and the row nearest to its tolerance."""
    table = Table("rung", "", "result", "distance", "tolerance", "where", title=model)
    for rung in rungs:
        row = most_severe(rung)
        status = Text(rung.status, style=COLOURS[rung.status])
        cells = (number(row.distance), number(row.tolerance), row.where) if row else ("", "", "")
        table.add_row(str(rung.number), rung.title, status, *cells)
    return table


def most_severe(rung: RungReport) -> Row | None:
    """The first of the gravest rows; among those within tolerance, the one nearest to it."""
    if not rung.rows:
        return None
    rows = [row for row in rung.rows if row.status == rung.status]
    if rung.status not in ("agrees", "rounding"):
        return rows[0]

    def nearness(row: Row) -> float:
        return row.distance / row.tolerance if row.distance and row.tolerance else 0.0

    return max(rows, key=nearness)


def number(value: float | None) -> str:
    """Short: two digits are as much as a distance means."""
    return "" if value is None else f"{value:.1e}" if value else "0"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no word for it
    return value


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: float(value) if key in ("distance", "tolerance") and value is not None else value
        for key, value in row.items()
    }
