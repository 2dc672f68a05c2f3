"""The curves of training steps as one picture, for the card of a model: losses, reward margins, reward accuracies."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cdpo.hub.lineage import Lineage

CURVES = "curves.png"
#: inches, and dots for each: drawn at twice the 900 pixels that a card shows it in
WIDTH, ROW_HEIGHT, HEAD_HEIGHT, DPI = 9.0, 2.3, 0.25, 200
#: characters beyond which a label is written small, so that it ends before the legend
LONG = 60
TRAINING, EVALUATION = "#1f5fa8", "#d1600a"
#: what marks a measurement of the `tune` split among the names of metrics
HELD_OUT = "eval_"


@dataclass(frozen=True)
class Panel:
    """One small picture: which metrics are drawn in it, and what its axis says."""

    title: str
    axis: str
    #: the metric's name, by TRL's trainers of policies and by those of reward models
    names: tuple[str, ...]
    #: limits of the axis; None: as the points ask
    limits: tuple[float, float] | None = None


PANELS = (
    Panel("Loss", "loss", ("loss",)),
    Panel("Reward margin", "chosen minus rejected", ("rewards/margins", "margin")),
    Panel("Reward accuracy", "share of pairs", ("rewards/accuracies", "accuracy"), (-0.03, 1.03)),
)


@dataclass(frozen=True)
class Training:
    """One step's curves: `points` are the lines of its metrics.jsonl."""

    label: str
    points: Sequence[Mapping[str, Any]]

    def series(self, names: Iterable[str]) -> list[tuple[int, float]]:
        """(optimiser steps, value) of the first of these metrics that there is, by rising step.

        What is no finite number is left out. A step that was resumed may have measured twice: the last one counts.
        """
        for name in names:
            found = {int(each["step"]): float(each[name]) for each in self.points if each.get(name) is not None}
            finite = sorted((at, value) for at, value in found.items() if math.isfinite(value))
            if finite:
                return finite
        return []

    def panels(self) -> list[tuple[Panel, list[tuple[int, float]], list[tuple[int, float]]]]:
        """What there is to draw: each panel with its training points and its held-out points."""
        found = []
        for panel in PANELS:
            training = self.series(panel.names)
            held_out = self.series(f"{HELD_OUT}{name}" for name in panel.names)
            if training or held_out:
                found.append((panel, training, held_out))
        return found


def curves_of(lineage: Lineage) -> bytes | None:
    """The picture of the steps that trained a run's model; None where they left no curves."""
    drawn = [each for each in lineage.trainings if each["key"] in lineage.curves]
    return draw_curves([Training(f"{each['pipeline']}  {each['name']}", lineage.curves[each["key"]]) for each in drawn])


def draw_curves(trainings: Sequence[Training]) -> bytes | None:
    """A PNG with a row for each training; equal points give equal bytes. None where there is nothing to draw."""
    rows = [(training.label, panels) for training in trainings if (panels := training.panels())]
    if not rows:
        return None
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # a user's own settings would change the bytes
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = Figure(figsize=(WIDTH, len(rows) * (ROW_HEIGHT + HEAD_HEIGHT)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        strips = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for strip, (label, panels) in zip(strips, rows, strict=True):
            size = 10 if len(label) <= LONG else 7
            strip.suptitle(label, x=0.01, ha="left", fontsize=size, fontweight="bold", parse_math=False)
            room = strip.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.06})[0]
            for axes, (panel, training, held_out) in zip(room, panels, strict=True):
                # what has no rewards imitates, and its loss is a cross-entropy
                _draw(axes, replace(panel, axis="nats per token") if len(panels) == 1 else panel, training, held_out)
            named = {name: line for axes in room for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
            strip.legend(named.values(), named.keys(), loc="upper right", ncols=2, fontsize=8, frameon=False)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw(axes: Any, panel: Panel, training: list[tuple[int, float]], held_out: list[tuple[int, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for points, colour, name, size in (
        (training, TRAINING, "training", 4.0),
        (held_out, EVALUATION, "tune split", 5.0),
    ):
        if points:
            few = points is held_out or len(points) < 5
            at, values = zip(*points, strict=True)
            axes.plot(at, values, color=colour, label=name, linewidth=1.3, marker="o" if few else "", markersize=size)
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.set_xlabel("optimiser steps", fontsize=9)
    axes.set_ylabel(panel.axis, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_xlim(0, 1.03 * max(1, *(at for at, _ in (*training, *held_out))))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if panel.limits:
        axes.set_ylim(*panel.limits)
    if panel.title == "Reward margin":
        axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
