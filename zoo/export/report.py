"""Report of an export, in the form of the cross-backend check."""

from dataclasses import dataclass

from zoo.parity.report import Report


@dataclass(frozen=True)
class ExportReport(Report):
    """Report of an export: the comparisons of the file with the model.

    `settings` has the format and the type of its weights, the backend that the model came from, the
    sizes of the compared batches, and what was measured of the file: `bytes`, `load_seconds`,
    `file_seconds` and `model_seconds` of a call by the batch size, and for a trained model
    `examples`, `file_metrics`, `model_metrics` and `card_metrics`.
    """

    @property
    def exit_status(self) -> int:
        """Exit status of the command: 0 only if each rung compared something, and all agree."""
        compared = [any(row.status == "agrees" for row in rung.rows) for rung in self.rungs]
        return super().exit_status or (0 if all(compared) else 2)

    @property
    def proven(self) -> bool:
        """Whether the file is in its place: it ran without Keras and agrees with the model."""
        return self.agrees

    @property
    def verdict(self) -> str:
        """Result of the export in words."""
        if self.exit_status == 0:
            return "exported and proven"
        if self.exit_status == 1:
            return "not exported: the file differs from the model"
        return "not exported: the proof could not be made"
