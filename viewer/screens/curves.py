"""Curves: how trainings went, on one axis; and a metric of the results over two parameters."""

import streamlit as st

from cdpo.viewer import curves_page, look, source, tuning_page

LEARNING, TUNING = "training curves", "parameter tuning"

store = source.shown()
assert store is not None  # the frame shows another page where there is none
look.head("Curves", "How trainings went, and what a metric is over the parameters that were tried.")
part = st.segmented_control(
    "Part",
    [LEARNING, TUNING],
    default=LEARNING,
    required=True,
    key="part",
    bind="query-params",
    label_visibility="collapsed",
)
if part == TUNING:
    tuning_page.page(str(store.root))
else:
    curves_page.page(str(store.root))
