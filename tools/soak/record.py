"""What a case saw: figures, and whether each is as it must be."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    """One observation; ``holds`` is None where it is only told, not judged."""

    what: str
    seen: str
    holds: bool | None = None


@dataclass(slots=True)
class Record:
    """Filled by a case while it runs. A case passes when it ends and nothing that was judged failed."""

    done: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    failure: str | None = None
    seconds: float = 0.0

    def did(self, what: str) -> None:
        """Say what is about to be done, with its sizes."""
        self.done.append(what)

    def saw(self, what: str, seen: object, *, holds: bool | None = None) -> None:
        """Note an observation; ``holds`` judges it."""
        self.figures.append(Figure(what, str(seen), holds))

    @property
    def passed(self) -> bool:
        return self.failure is None and bool(self.figures) and all(each.holds is not False for each in self.figures)


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the cases are: full size, or tiny, which proves the runner and nothing else."""

    quick: bool = False

    def of(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def mib(size: float) -> str:
    """Bytes as MiB, for people."""
    return f"{size / (1 << 20):,.1f} MiB"
