"""The memory that parts are collected in: filled in place as bytes arrive, and used again for later parts.

Each buffer has one owner at a time, who gives it back on every path: the stream that fills it, then the call that
sends it as a part.
"""

from __future__ import annotations


class PartBuffer:
    """A part that is being filled. The bytes are copied once, from the read into their place."""

    def __init__(self, memory: bytearray) -> None:
        self._memory = memory
        self._view = memoryview(memory)
        self._filled = 0

    @property
    def full(self) -> bool:
        """Whether there is no room for another byte."""
        return self._filled == len(self._memory)

    def fill(self, data: memoryview) -> int:
        """Take as much of `data` as there is room for; returns how many bytes that was."""
        taken = min(len(data), len(self._memory) - self._filled)
        self._view[self._filled : self._filled + taken] = data[:taken]
        self._filled += taken
        return taken

    @property
    def room(self) -> memoryview:
        """The place of the bytes to come, for who can put them there without a copy; tell `advance` how many."""
        return self._view[self._filled :]

    def advance(self, count: int) -> None:
        """`count` bytes have been put into `room`."""
        self._filled += count

    def finish(self) -> bytearray:
        """The bytes that were filled in, and no more. Only the last part of a body is ever shortened."""
        self._view.release()
        del self._memory[self._filled :]
        return self._memory

    def abandon(self) -> bytearray:
        """The memory, whole, whose bytes nobody wants."""
        self._view.release()
        return self._memory


class Buffers:
    """Buffers of `size` bytes. Up to `keep` are kept for reuse: fresh memory costs a page fault every 4 KiB."""

    def __init__(self, size: int, keep: int) -> None:
        self.size = size
        self._keep = keep
        self._free: list[bytearray] = []

    def take(self, length: int | None) -> PartBuffer:
        """A buffer for the next part of a body of which `length` bytes are still to come (None: nobody knows)."""
        if length is not None and length < self.size:
            return PartBuffer(bytearray(length))
        return PartBuffer(self._free.pop() if self._free else bytearray(self.size))

    def give_back(self, memory: bytearray) -> None:
        """Let a part's memory be used again, if it is a whole buffer still."""
        if len(memory) == self.size and len(self._free) < self._keep:
            self._free.append(memory)

    def trim(self, keep: int) -> None:
        """Let the system have all but `keep` of those that wait for a user."""
        del self._free[keep:]
