"""Whether an execution sees its store: network file systems fall silent for a while, and disks are unmounted."""

from collections.abc import Callable
from pathlib import Path

from cdpo import disk
from cdpo.engine.show.reporter import Reporter
from cdpo.errors import CdpoError


class Sight:
    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._store = reporter.store
        #: a file that the execution made in its store: where it is gone, so is the store
        self.landmark: Path | None = None
        #: the store did not answer when it was last looked at
        self.lost = False

    def look(self, around: Callable[[], None]) -> None:
        """Call `around`, which looks at the steps that run; where the store does not answer they go on unseen.

        That is told once. Raises CdpoError where the store is gone: what was written now would go to another place
        under its name.
        """
        try:
            if self.landmark is not None and not self.landmark.exists():
                raise CdpoError(
                    f"{self._store.root}: this store is gone, removed or with its file system; bring it back, then "
                    "`cdpo execute` goes on. What still runs ends by itself, or is found again"
                )
            around()
        except OSError as error:
            if not self.lost:
                reason = disk.explained(error, self._store.root) or error
                self._reporter.emit("note", text=f"{reason}; what runs goes on, and is looked at again")
            self.lost = True
        else:
            if self.lost:
                self._reporter.emit("note", text=f"{self._store.root}: answers again")
            self.lost = False
