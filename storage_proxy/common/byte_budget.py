"""The memory that bytes on their way may take in this process: one number for all buffers and for all prefetched blobs.

The law: what is taken is given back exactly once, on every path; with nothing under way ``taken`` is 0.
"""


class ByteBudget:
    """Counts what is held against ``total`` bytes. It never waits: who is refused goes on with less."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0

    @property
    def free(self) -> int:
        """Bytes that may still be taken; 0 where more than the total is held."""
        return max(0, self.total - self.taken)

    def take(self, count: int) -> bool:
        """Take ``count`` bytes if that many are free."""
        if count > self.free:
            return False
        self.taken += count
        return True

    def take_anyway(self, count: int) -> None:
        """Take ``count`` bytes even beyond the total: the least without which a download cannot go on."""
        self.taken += count

    def give(self, count: int) -> None:
        """Give back ``count`` bytes."""
        assert count <= self.taken, "more is given back than was taken"
        self.taken -= count
