"""The frame around every page: which store is shown, the menu, and the tags that all pages keep to."""

import streamlit as st

from cdpo.errors import CdpoError
from cdpo.viewer import choices, look, source
from cdpo.viewer.data import is_busy

st.set_page_config(page_title="cdpo", page_icon=str(look.ICON), layout="wide")
look.style()

source.use_env_file()
store = source.shown()
busy = store is not None and is_busy(store)


def open_first() -> None:
    """What opens where no page is asked for. A page of its own, because the default page has no address of its own."""
    # what a widget has in the address is its own already, and stays there by itself
    asked = {name: st.query_params.get_all(name) for name in st.query_params if name not in st.session_state}
    st.switch_page(pages["board" if busy else "results"], query_params=asked)


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
landing = st.Page(open_first, title="cdpo", default=True, visibility="hidden")
page = st.navigation([landing, *pages.values()])
if page.title == landing.title:
    page.run()

with st.sidebar:
    source.caption(store)
    if store is not None:
        choices.choose_tags(store)
if store is None:
    look.nothing_yet(source.wanted())
else:
    try:
        page.run()
    except CdpoError as error:  # what a page does not tell in its own words
        look.trouble(str(error))
