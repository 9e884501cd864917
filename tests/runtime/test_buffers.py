"""Part buffers."""

from __future__ import annotations

from twisted_storaged.runtime.buffers import BufferPool, PartBuffer


class PartBufferTests:
    """Filling one part."""

    def test_takes_what_fits(self) -> None:
        """The rest is for the next part."""
        buffer = PartBuffer(bytearray(4))
        assert buffer.fill(memoryview(b"abc")) == 3
        assert not buffer.full
        assert buffer.fill(memoryview(b"def")) == 1
        assert buffer.full
        assert buffer.finish() == b"abcd"

    def test_last_part_is_as_long_as_it_is(self) -> None:
        """No padding."""
        buffer = PartBuffer(bytearray(4))
        buffer.fill(memoryview(b"ab"))
        assert buffer.finish() == b"ab"

    def test_bytes_are_not_copied_again(self) -> None:
        """What was filled is what is handed out."""
        memory = bytearray(4)
        buffer = PartBuffer(memory)
        buffer.fill(memoryview(b"abcd"))
        assert buffer.finish() is memory


class BuffersTests:
    """Having memory, and using it again."""

    def test_small_body_gets_a_small_buffer(self) -> None:
        """4 KiB objects do not cost a part each."""
        buffers = BufferPool(1000, keep=1)
        assert len(buffers.take(10).finish()) == 0
        buffer = buffers.take(10)
        assert buffer.fill(memoryview(bytes(1000))) == 10

    def test_memory_is_used_again(self) -> None:
        """But no more is kept than was said, and no shortened piece."""
        buffers = BufferPool(4, keep=1)
        first, second = bytearray(4), bytearray(4)
        buffers.give_back(bytearray(3))
        buffers.give_back(first)
        buffers.give_back(second)
        taken = buffers.take(None)
        taken.fill(memoryview(b"abcd"))
        assert taken.finish() is first
        other = buffers.take(4)
        other.fill(memoryview(b"abcd"))
        assert other.finish() is not second
