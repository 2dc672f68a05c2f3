"""The test Hub as a process of its own, to be killed and started again over the same folder, at the same address."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.hub.hub_messages import Account
from tests.hub.hub_server import environment, keep_accounts


class HubProcess:
    """Use as a context manager. `words` go to the command of hub_server.py. It ends with who started it."""

    def __init__(self, folder: Path, *words: str, accounts: dict[str, Account] | None = None):
        self.folder, self.words = folder, words
        if accounts:
            keep_accounts(folder, accounts)
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, cache: Path, token: str | None) -> dict[str, str]:
        return environment(self.url, cache, token)

    def start(self) -> None:
        """Return when it answers."""
        told = ["--folder", str(self.folder), "--port", str(self.port), "--while-stdin", *self.words]
        command = [sys.executable, "-m", "tests.hub.hub_server", *told]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the Hub over {self.folder} did not start")
        self.port = int(json.loads(line)["url"].rpartition(":")[2])

    def kill(self) -> None:
        """As kill -9 does."""
        assert self.process
        assert self.process.stdin
        assert self.process.stdout
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def __enter__(self) -> "HubProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
