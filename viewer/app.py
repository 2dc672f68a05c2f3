"""The frame around every page: which store is shown, the menu, and the tags that all pages keep to."""

import streamlit as st

from cdpo.viewer import choices, look, source
from cdpo.viewer.data import is_busy

st.set_page_config(page_title="cdpo", page_icon=str(look.ICON), layout="wide")
look.style()

source.use_env_file()
store = source.shown()
busy = store is not None and is_busy(store)


def open_first() -> None:
    """What opens where no page is asked for. A page of its own, because the default page has no address of its own."""
    st.switch_page(pages["board" if busy else "results"])


# not in a folder `pages/`: until st.navigation was called once, Streamlit would run a file of it without this frame
pages = {
    "results": st.Page("screens/results.py", title="Results", icon=":material/table_chart:"),
    "board": st.Page("screens/board.py", title="Board", icon=":material/grid_view:"),
    "curves": st.Page("screens/curves.py", title="Curves", icon=":material/show_chart:"),
    "compare": st.Page("screens/compare.py", title="Compare", icon=":material/compare_arrows:"),
    "datasets": st.Page("screens/datasets.py", title="Datasets", icon=":material/fact_check:"),
    "provenance": st.Page("screens/provenance.py", title="Provenance", icon=":material/account_tree:"),
}
if busy:
    pages = {"board": pages["board"], **pages}
page = st.navigation([st.Page(open_first, title="cdpo", default=True, visibility="hidden"), *pages.values()])

with st.sidebar:
    source.caption(store)
    if store is not None:
        choices.choose_tags(store)
if store is None:
    look.nothing_yet(source.wanted())
else:
    page.run()
