"""Which store the viewer shows: one on this machine, or a copy of what somebody published on the Hugging Face Hub.

`CDPO_HUB` names a user or an organization of the Hub, `CDPO_STORE` a folder (default: `./.cdpo` of the project that the
viewer lies in); both are environment variables, or lines of a file `.env`. An address with `?hub=NAMESPACE` shows that
namespace, where `CDPO_HUB` does not say otherwise.
"""

import os
from ipaddress import ip_address
from pathlib import Path

import streamlit as st
from dotenv import dotenv_values

from cdpo.errors import CdpoError
from cdpo.store import Store
from cdpo.viewer import look

HUB = "hub"
#: seconds after which the Hub is asked again for what is new
FRESH = 300


def use_env_file() -> None:
    """Take what `.env` says of where things are, beside the viewer or in the project; the environment goes first."""
    for folder in (Path.cwd(), Path.cwd().parent):
        for name, value in dotenv_values(folder / ".env").items():
            if value is not None and name.startswith(("CDPO_", "HF_")):
                os.environ.setdefault(name, value)


def namespace() -> str | None:
    """The namespace of the Hub that is to be shown; None for a store on this machine."""
    fixed = os.environ.get("CDPO_HUB")
    if fixed:
        return fixed
    asked = st.query_params.get(HUB) or st.session_state.get(HUB)
    if asked:
        # kept in the address of every page
        st.session_state[HUB] = st.query_params[HUB] = asked
    return asked or None


def wanted() -> Path:
    """The folder of the store on this machine, whether or not it is there."""
    given = os.environ.get("CDPO_STORE")
    if given:
        return Path(given).expanduser().resolve()
    here = Path.cwd()
    # `cd viewer && streamlit run app.py`: the store is the project's
    return (here.parent if here.name == "viewer" and not (here / ".cdpo").is_dir() else here) / ".cdpo"


def shown() -> Store | None:
    """The store; None where there is none yet. Where it cannot be had, says so and ends the page."""
    asked = namespace()
    if asked is not None:
        return _published(asked)
    folder = wanted()
    return Store(folder) if (folder / "refs").is_dir() or (folder / "plans").is_dir() else None


def _published(asked: str) -> Store:
    if not os.environ.get("CDPO_HUB") and not _for_this_machine_only() and os.environ.get("HF_TOKEN"):
        look.trouble(
            "This viewer can be reached from elsewhere and has a token of the Hub: it shows only the namespace that "
            "CDPO_HUB names, so that nobody else's addresses open what the token may see."
        )
    try:
        folder = _mirrored(asked)
    except CdpoError as error:
        look.trouble(str(error))
    return Store(Path(folder))


@st.cache_resource(ttl=FRESH, show_spinner="Reading what is published on the Hub ...")
def _mirrored(asked: str) -> str:
    from cdpo.hub.mirror import mirror

    return str(mirror(asked).root)


def _for_this_machine_only() -> bool:
    address = st.get_option("server.address") or "0.0.0.0"
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def caption(store: Store | None) -> None:
    """What is shown, in the sidebar."""
    asked = namespace()
    if asked is None:
        folder = store.root if store is not None else wanted()
        st.caption("Store", help=f"`{folder}`")
        st.code("/".join(folder.parts[-2:]), language=None, wrap_lines=True)
        return
    st.caption("Published on the Hugging Face Hub by")
    st.code(asked, language=None, wrap_lines=True)
    if st.button("Look for what is new", icon=":material/refresh:", width="stretch"):
        _mirrored.clear()
        st.rerun()
