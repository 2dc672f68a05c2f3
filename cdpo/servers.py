"""What all who ask a server have in common: which failures may pass, and how long to wait for that."""

from urllib.parse import urlsplit

#: seconds before the first repetition of a request, and the most that are waited where the server names no time
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
_MAY_PASS = (408, 409, 425, 429)


def may_pass(status: int) -> bool:
    """Whether a request that failed with this status of HTTP may be answered when it is sent again."""
    return status in _MAY_PASS or status >= 500


def on_this_machine(url: str) -> bool:
    """Whether a server is on this very machine, of which a proxy of the network knows nothing."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
