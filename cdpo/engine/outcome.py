"""How an execution ended."""

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Keys of steps by what became of them; steps that were not reached are in none."""

    #: made now
    done: list[str] = field(default_factory=list)
    #: there already
    cached: list[str] = field(default_factory=list)
    #: key -> why
    failed: dict[str, str] = field(default_factory=dict)
    #: key -> the label of the failed step that it needs
    blocked: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """0 all there, 1 some step failed, 130 interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.failed or self.blocked else 0
