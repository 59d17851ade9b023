"""HTML page of reports: tables and matplotlib plots in one file without external resources."""

import io
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
import markupsafe

from zoo.parity import report as reporting
from zoo.parity.report import Report

BACKEND_COLOURS = {"tensorflow": "#E69F00", "torch": "#CC3311", "jax": "#0077BB"}
PAIR_COLOURS = ("#009988", "#AA4499", "#332288")

_SMALLEST = 1e-18  # position of a distance of 0 on a logarithmic axis


def page(reports: Sequence[Report], heading: str = "Cross-backend check") -> str:
    """Renders reports as an HTML page.

    Args:
        reports: The reports.
        heading: Heading of the page.
    """
    source = resources.files("zoo.parity").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["number"] = reporting.format_number
    return environment.from_string(source).render(
        reports=[(report, _plots(report)) for report in reports],
        most_severe=reporting.most_severe,
        heading=heading,
    )


def _plots(report: Report) -> list[tuple[str, markupsafe.Markup]]:
    """Returns title and SVG element of each plot."""
    plots = []
    for mode in ("inference", "training"):
        if any(title.startswith(mode) for title in report.layers):
            title = f"Distance by layer, {mode} mode"
            plots.append((title, _layers_plot(report, mode)))
    if report.curves:
        plots.append(("Losses of training from one seed", _curves_plot(report)))
    if report.accuracy:
        plots.append(("Accuracy of trained models", _accuracy_plot(report)))
    return plots


def _layers_plot(report: Report, mode: str) -> markupsafe.Markup:
    precisions = sorted({title.split(", ")[1] for title in report.layers if mode in title})
    figure, axes = _figure(len(precisions), height=3.6)
    for axis, precision in zip(axes, precisions):
        titles = [t for t in report.layers if t.startswith(f"{mode} mode, {precision}")]
        # Different line styles keep equal distances visible.
        for colour, style, title in zip(PAIR_COLOURS, ("-", "--", ":"), titles):
            points = report.layers[title]
            numbers = [max(_drawable(distance), _SMALLEST) for _, distance, _ in points]
            pair = title.split(", ")[2]
            axis.plot(numbers, style, marker=".", color=colour, label=pair, linewidth=2)
        points = report.layers[titles[0]]
        tolerances = [tolerance for *_, tolerance in points]
        axis.plot(tolerances, color="#888888", linestyle="-.", label="tolerance")
        step = max(1, len(points) // 24)
        ticks = range(0, len(points), step)
        axis.set_xticks(ticks, [points[i][0] for i in ticks], rotation=60, ha="right", fontsize=7)
        axis.set_yscale("log")
        axis.set_title(precision)
        axis.set_ylabel("relative distance")
        _legend(axis)
    return _svg(figure, f"{report.model}: distance by layer in {mode} mode")


def _curves_plot(report: Report) -> markupsafe.Markup:
    figure, (left, right) = _figure(2, height=3.2)
    precision = "float32" if "float32" in report.curves else next(iter(report.curves))
    # Different line styles keep equal curves visible.
    styles = {"tensorflow": "-", "torch": "--", "jax": ":"}
    for name, losses in report.curves[precision].items():
        steps = range(1, len(losses) + 1)
        left.plot(
            steps, losses, styles[name], color=BACKEND_COLOURS[name], label=name, linewidth=2.5
        )
    left.set(xlabel="step", ylabel="loss", title=precision)
    _legend(left)
    for kind, style in (("float32", "-"), ("float64", ":")):
        curves = list(report.curves.get(kind, {}).items())
        first, *others = curves or [("", [])]
        for name, losses in others:
            distances = [
                max(abs(a / b - 1) if b else 0.0, _SMALLEST) for a, b in zip(losses, first[1])
            ]
            steps = range(1, len(distances) + 1)
            label = f"{name} and {first[0]}, {kind}"
            colour = BACKEND_COLOURS[name]
            right.plot(steps, distances, style, marker=".", color=colour, label=label)
    right.set(xlabel="step", ylabel="relative distance", yscale="log", title="distance")
    _legend(right)
    return _svg(figure, f"{report.model}: losses by backend")


def _accuracy_plot(report: Report) -> markupsafe.Markup:
    """Plots each backend's accuracies as points, and the confidence interval of each difference."""
    figure, (left, right) = _figure(2, height=3.0)
    for i, (name, values) in enumerate(report.accuracy["test_accuracy"].items()):
        left.plot([100 * v for v in values], [i] * len(values), "o", color=BACKEND_COLOURS[name])
    names = list(report.accuracy["test_accuracy"])
    left.set_yticks(range(len(names)), names)
    left.set(xlabel="test accuracy, %", title="one point per seed")
    left.margins(y=0.4)
    margin = 100 * report.accuracy["margin"]
    pairs = report.accuracy["pairs"]
    for i, pair in enumerate(pairs):
        low, high = (100 * bound for bound in pair["interval"])
        right.plot([low, high], [i, i], color=PAIR_COLOURS[i], linewidth=3)
        right.plot(100 * pair["difference"], i, "o", color=PAIR_COLOURS[i])
    for edge in (-margin, margin):
        right.axvline(edge, color="#888888", linestyle="--")
    right.set_yticks(range(len(pairs)), [" − ".join(pair["between"]) for pair in pairs])
    right.set(xlabel="difference, points", title="90 % confidence interval; dashed: margin")
    right.margins(y=0.4)
    return _svg(figure, f"{report.model}: accuracy by backend")


def _drawable(distance: float) -> float:
    return distance if math.isfinite(distance) else 1e3


def _figure(columns: int, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # imported late, since the import takes half a second

    figure = Figure(figsize=(5.2 * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, alpha=0.25)
    return figure, axes


def _legend(axis: Any) -> None:
    """Places the legend beside the lines, not over them."""
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _svg(figure: Any, label: str) -> markupsafe.Markup:
    """Converts a figure to an SVG element."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    opening = markupsafe.Markup('<svg role="img" aria-label="{}"').format(label)
    return opening + markupsafe.Markup(svg.removeprefix("<svg"))
