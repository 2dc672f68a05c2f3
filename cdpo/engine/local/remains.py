"""What ended workers left running: killed, waited for, and told where it will not go."""

import time

from cdpo.engine import trees
from cdpo.engine.process import Identity, describe
from cdpo.engine.show.reporter import Reporter
from cdpo.engine.trees import Tree
from cdpo.store.services import SERVICE

#: seconds that a killed process may take to go before that is told
PATIENCE = 2.0
#: and before its step counts as ended all the same
LONG_PATIENCE = 20.0
PAUSE = 0.05


class Remains:
    """Of the steps of one execution, and of earlier ones that nobody watched to their end."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        #: marks of trees of which something was told
        self._told: set[str] = set()
        self._earlier: list[Tree] = []

    def gone(self, key: str, tree: Tree) -> bool:
        """Kill what an ended worker of `key` started; whether none of it lives, or it was waited for in vain."""
        left = tree.kill()
        if not left or tree.since is None:
            return True
        waited = time.monotonic() - tree.since
        if waited > PATIENCE:
            self._tell(tree, left, "its worker has ended; killed and not yet gone", key)
        return waited > LONG_PATIENCE

    def look_for_earlier(self) -> None:
        """Take note of what runs of steps of this store that nobody makes any more; `sweep` ends it."""
        self._earlier = [Tree(mark) for mark in trees.leftovers(self._reporter.store)]

    def sweep(self) -> None:
        """To be called a while after `look_for_earlier`: then workers in their very last moments have gone."""
        for tree in self._earlier:
            left = tree.kill()
            if left:
                self._tell(tree, left, "killed what an ended worker of this store left running")
        self._earlier = [tree for tree in self._earlier if tree.remains]

    def end_keepers(self) -> None:
        """End what keepers that were killed left running. To be called when the steps are done: nobody else will."""
        store = self._reporter.store
        left = [Tree(mark) for mark in trees.leftovers(store) if trees.key_of(mark).startswith(SERVICE)]
        limit = time.monotonic() + PATIENCE
        while left and time.monotonic() < limit:
            left = [tree for tree in left if tree.kill()]
            time.sleep(PAUSE)

    def _tell(self, tree: Tree, left: list[Identity], text: str, key: str | None = None) -> None:
        if tree.mark not in self._told:
            self._told.add(tree.mark)
            names = ", ".join(describe(who["pid"]) for who in left)
            self._reporter.emit("note", key, text=f"{text}: {names}")
