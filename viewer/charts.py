"""What all charts share: colours that are readable in light and dark, and their downloads."""

import io
import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import streamlit as st

from cdpo.plan.names import safe

# a figure has the points that the page has, which are bounded where they are made
alt.data_transformers.disable_max_rows()

#: of lines and dots: each stands out from a white page and from a dark one (WCAG's 3 : 1 for graphics)
COLOURS = (
    "#3b82c4", "#d9730d", "#2e9e5b", "#d64550", "#9067c6", "#1b98a6", "#d6568f", "#a1704a", "#868a1f", "#7f8790",
)  # fmt: skip
#: what tells lines apart when colours are used again
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
#: perceptually uniform, and still in order when printed in grey
SEQUENTIAL = "viridis"
#: dots for each pixel of a downloaded picture
SHARPNESS = 2.5


def colours(names: Sequence[str]) -> alt.Scale:
    """One colour for each name, in this order; after the last of COLOURS the first comes again."""
    return alt.Scale(domain=list(names), range=[COLOURS[at % len(COLOURS)] for at in range(len(names))])


def dashes(names: Sequence[str]) -> alt.Scale:
    """One pattern of strokes for each name: names that share a colour have different ones."""
    every = [list(DASHES[at // len(COLOURS) % len(DASHES)]) for at in range(len(names))]
    return alt.Scale(domain=list(names), range=every)


def show(chart: Any, name: str) -> None:
    """The chart as wide as the page, and below it its downloads. `name` is unique on the page."""
    st.altair_chart(chart, width="stretch", key=f"chart {name}")
    downloads(chart, name)


def downloads(chart: Any, name: str) -> None:
    """Two buttons: the figure as Vega-Lite JSON, and as PNG, which is drawn only when it is asked for."""
    stem = safe(name)
    with st.container(horizontal=True, horizontal_alignment="right"):
        for label, data, form, mime in (
            ("Figure JSON", lambda: figure_json(chart), "json", "application/json"),
            ("PNG", lambda: figure_png(chart), "png", "image/png"),
        ):
            st.download_button(
                label,
                data,
                f"{stem}.{form}",
                mime,
                key=f"download {name} {form}",
                on_click="ignore",
                type="tertiary",
                icon=":material/download:",
            )


def figure_json(chart: Any) -> str:
    """The figure with its data, for https://vega.github.io/editor or `altair.Chart.from_json`."""
    return json.dumps(for_paper(chart).to_dict(), indent=1)


def figure_png(chart: Any, sharpness: float = SHARPNESS) -> bytes:
    """The figure on white, drawn here: no network, no browser."""
    stream = io.BytesIO()
    for_paper(chart).save(stream, format="png", scale_factor=sharpness)
    return stream.getvalue()


def for_paper(chart: Any) -> Any:
    """As a file has neither the page's width nor its theme, the figure brings its own."""
    wide = chart.properties(width=760) if isinstance(chart, alt.Chart | alt.LayerChart) else chart
    return (
        wide.configure(background="white", font="Helvetica, Arial, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=12, titleFontSize=12, titleFontWeight="normal", gridColor="#e6e6e6", labelLimit=400
        )
        .configure_legend(labelFontSize=12, titleFontSize=12, labelLimit=500)
        .configure_title(fontSize=14, anchor="start")
    )
