"""Memory that is used again."""

from __future__ import annotations

from threading import Thread

import pytest

from twisted_storaged.runtime.buffers import FEW, PIECE, SMALL_PIECE, Memory


class MemoryTests:
    """Pieces are lent, and come back by themselves."""

    def test_a_piece_is_used_again(self) -> None:
        """As soon as nobody looks at it."""
        memory = Memory(keep=1)
        piece = memory.piece()
        piece[:3] = b"abc"
        del piece
        assert bytes(memory.piece()[:3]) == b"abc"

    def test_not_while_a_part_of_it_is_looked_at(self) -> None:
        """Which a transport may keep for as long as its client likes."""
        memory = Memory(keep=2)
        part = memoryview(memory.piece()[10:20])
        memory.piece()[:] = b"y" * PIECE
        assert bytes(part) == bytes(10)

    def test_no_more_are_kept_than_said(self) -> None:
        """However many were lent at a time."""
        memory = Memory(keep=2)
        pieces = [memory.piece() for _ in range(5)]
        assert memory._free == []
        del pieces
        assert len(memory._free) == 2

    @pytest.mark.parametrize("size", [1, 4096, SMALL_PIECE, SMALL_PIECE + 1, PIECE])
    def test_there_is_room(self, size: int) -> None:
        """For as many bytes as are asked for, at the beginning of a page."""
        memory = Memory(keep=1)
        for _ in range(2):
            piece = memory.piece(size)
            assert len(piece) >= size
            piece[size - 1] = 1
            del piece

    def test_few_are_kept_when_nobody_reads(self) -> None:
        """A pool that many needed is small again, and works on."""
        memory = Memory(keep=9)
        pieces = [memory.piece() for _ in range(9)]
        del pieces
        memory.shrink()
        assert len(memory._free) == FEW
        assert len(memory.piece()) == PIECE

    def test_any_thread_may_ask(self) -> None:
        """And never has what another has."""
        memory, wrong = Memory(keep=3), []

        def use(mark: int) -> None:
            for _ in range(300):
                piece = memory.piece()[:16]
                piece[:] = bytes([mark]) * 16
                wrong.extend([mark] * (bytes(piece) != bytes([mark]) * 16))
                del piece

        threads = [Thread(target=use, args=(mark,)) for mark in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
