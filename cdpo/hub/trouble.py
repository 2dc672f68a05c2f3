"""What went wrong between the Hub and us, which its client hides behind errors of its own."""

from typing import TYPE_CHECKING

from cdpo import retry_after

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: statuses after which the same may pass the next time, beside those from 500 on
TRIED_AGAIN = (408, 409, 412, 425, 429)


class Trouble:
    """An error of the client, understood."""

    def __init__(self, error: BaseException, api: "HfApi") -> None:
        chain = [error]
        while (below := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(below)
        answered = (each for each in chain if getattr(each, "response", None) is not None)
        #: what the server answered, or how the connection broke
        self.cause = next(answered, None) or next((each for each in chain if _broken(each)), error)
        self.host = str(api.endpoint).partition("://")[2]
        self._response = getattr(self.cause, "response", None)

    @property
    def status(self) -> int | None:
        """Of the answer; None where there was none."""
        return self._response.status_code if self._response is not None else None

    @property
    def may_pass(self) -> bool:
        """Whether it is worth to try again."""
        if self.status is None:
            return _broken(self.cause)
        return self.status in TRIED_AGAIN or self.status >= 500

    @property
    def pause(self) -> float | None:
        """Seconds that the server wants to be left alone for."""
        return None if self._response is None else retry_after.seconds(self._response.headers.get("retry-after"))

    def __str__(self) -> str:
        from huggingface_hub import get_token
        from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

        if isinstance(self.cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        if isinstance(self.cause, LocalTokenNotFoundError) or (self.status == 401 and get_token() is None):
            return f"there is no token for {self.host}: set HF_TOKEN, or `hf auth login`"
        if self.status == 401:
            return f"{self.host} does not know this token (HF_TOKEN, or `token` in configs/services/huggingface.yaml)"
        if self.status == 403:
            return f"the token may not do that at {self.host} (HTTP 403): publishing needs the role write"
        if self.status is not None:
            said = getattr(self.cause, "server_message", None) or "without a word"
            return f"{self.host} answered HTTP {self.status}: {said}"
        if _broken(self.cause):
            return f"{self.host} cannot be reached ({type(self.cause).__name__}: {self.cause})"
        return str(self.cause) or type(self.cause).__name__


def _broken(error: BaseException) -> bool:
    """Whether a connection failed, and not we."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(error, HTTPError | ConnectionError | TimeoutError) and not isinstance(error, OfflineModeIsEnabled)
