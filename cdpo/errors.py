"""What a user can mend is a CdpoError: printed without a traceback, with the exit code it carries.

0  done        1  some step failed        2  wrong configuration or usage        130  interrupted
"""


class CdpoError(Exception):
    """Something the user can mend. The message says what happened, where, and what to do."""

    exit_code = 1


class UsageError(CdpoError):
    """The configuration, the data or the command line is wrong; nothing was run."""

    exit_code = 2


class DamagedFile(CdpoError, ValueError):
    """A file that cdpo wrote is no longer what it wrote: cut short, edited, or of another program."""


class StepError(CdpoError):
    """A step cannot go on, for a reason that its pipeline can name (bad rows, a model that does not fit, ...)."""


class OutOfMemory(StepError):
    """A step that did not fit into memory, with `rows` rows going through its model at once.

    `rows` is None where fewer of them are no way out. `said` is what the allocator said.
    """

    def __init__(self, rows: int | None, said: str) -> None:
        super().__init__(f"out of memory{f' with {rows} rows at once' if rows else ''} ({said})")
        self.rows, self.said = rows, said
