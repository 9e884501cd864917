"""Page-aligned memory that is reused, and the budgets that GETs share."""

from __future__ import annotations

import random
from ctypes import addressof, c_char
from mmap import PAGESIZE
from threading import Thread

import pytest

from twisted_storaged.runtime.buffers import (
    DELIVERY_BYTES,
    KEEP_FOR_READS,
    MAX_READ,
    MIN_READ,
    PIECE,
    SMALL_PIECE,
    BufferPool,
    DeliveryBudget,
    ReadReservation,
    part_buffers,
)
from twisted_storaged.runtime.metering import Meters


def pool_of(size: int, keep: int) -> BufferPool:
    return BufferPool(size, keep=keep)


def values(meters: Meters) -> dict[str, float]:
    """The values of metrics that have one each."""
    return {one.family.name.removeprefix("storaged_"): value for one in meters.snapshot() for _, value in one.values}


def free_pieces(pool: BufferPool) -> int:
    return sum(map(len, pool._free.values()))


class BufferPoolTests:
    """Pieces are taken, and return to the pool when they are given back or no longer referred to."""

    def test_a_piece_is_reused(self) -> None:
        """A piece that nothing refers to any more is what the next caller gets."""
        pool = pool_of(PIECE, keep=1)
        piece = pool.take(PIECE)
        piece[:3] = b"abc"
        del piece
        assert bytes(pool.take(PIECE)[:3]) == b"abc"

    def test_not_while_a_view_of_it_exists(self) -> None:
        """A transport may keep a view of some of it for as long as its client is slow."""
        pool = pool_of(PIECE, keep=2)
        part = memoryview(pool.take(PIECE)[10:20])
        pool.take(PIECE)[:] = b"y" * PIECE
        assert bytes(part) == bytes(10)

    def test_a_piece_that_is_given_back_is_reused_at_once(self) -> None:
        """It is free although a view of it exists, and is not free twice when that view goes."""
        pool = pool_of(PIECE, keep=2)
        piece = pool.take(PIECE)[:10]
        piece[:3] = b"abc"
        pool.give_back(piece)
        pool.give_back(piece)
        assert free_pieces(pool) == 1
        again = pool.take(PIECE)
        assert bytes(again[:3]) == b"abc"
        del piece
        assert free_pieces(pool) == 0

    def test_memory_of_others_is_not_taken_in(self) -> None:
        """A body that arrived with its headers is in memory that is not the pool's."""
        pool = pool_of(4, keep=1)
        pool.give_back(memoryview(b"abcd"))
        assert free_pieces(pool) == 0

    def test_no_more_are_kept_than_configured(self) -> None:
        """Of five pieces that were in use at once, a pool that keeps two unmaps three."""
        pool = pool_of(PIECE, keep=2)
        pieces = [pool.take(PIECE) for _ in range(5)]
        assert free_pieces(pool) == 0
        del pieces
        assert free_pieces(pool) == 2

    @pytest.mark.parametrize("size", [0, 1, 4096, SMALL_PIECE, SMALL_PIECE + 1, PIECE, PIECE + 1])
    def test_there_is_room(self, size: int) -> None:
        """A piece has room for as many bytes as were asked for, and begins at a page."""
        pool = BufferPool(SMALL_PIECE, PIECE, keep=1)
        for _ in range(2):
            piece = pool.take(size)
            assert len(piece) >= size
            assert addressof(c_char.from_buffer(piece)) % PAGESIZE == 0
            piece[max(size, 1) - 1] = 1
            del piece

    def test_small_body_gets_a_small_piece(self) -> None:
        """An object of 4 KiB does not use the memory of a part, and its memory is not kept."""
        pool = pool_of(PIECE, keep=1)
        assert len(pool.take(4096)) == 4096
        assert free_pieces(pool) == 0

    @pytest.mark.parametrize("size", [PIECE, PIECE // 2, PIECE // 16 + 1])
    def test_memory_of_bodies_that_are_smaller_than_a_part_is_reused(self, size: int) -> None:
        """The pool for parts keeps the memory of smaller bodies, in pieces of less than twice their size."""
        pool = part_buffers(PIECE, keep=1)
        assert pool.size == PIECE
        piece = pool.take(size)
        assert size <= len(piece) < 2 * size
        del piece
        assert free_pieces(pool) == 1

    def test_few_are_kept_when_nothing_is_transferred(self) -> None:
        """A pool that was trimmed has at most so many free pieces, and works on."""
        pool = pool_of(PIECE, keep=9)
        pieces = [pool.take(PIECE) for _ in range(9)]
        del pieces
        pool.trim(KEEP_FOR_READS)
        assert free_pieces(pool) == KEEP_FOR_READS
        assert len(pool.take(PIECE)) == PIECE

    @pytest.mark.parametrize("give_back", [True, False])
    def test_any_thread_may_use_it(self, give_back: bool) -> None:
        """No two threads have the same piece at the same time."""
        pool, wrong = pool_of(PIECE, keep=3), []

        def use(mark: int) -> None:
            for _ in range(300):
                piece = pool.take(PIECE)[:16]
                piece[:] = bytes([mark]) * 16
                wrong.extend([mark] * (bytes(piece) != bytes([mark]) * 16))
                if give_back:
                    pool.give_back(piece)
                del piece

        threads = [Thread(target=use, args=(mark,)) for mark in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert not pool._taken

    def test_metrics(self) -> None:
        """They tell how much is in use and how much is kept, of all pools for a use."""
        meters = Meters()
        pool, other = BufferPool(SMALL_PIECE, PIECE, keep=1), pool_of(PIECE, keep=1)
        pool.watch(meters, "put")
        other.watch(meters, "put")
        assert values(meters) == {"buffers_in_use_bytes": 0, "buffers_kept_bytes": 0}
        pieces = [pool.take(PIECE), pool.take(PIECE), pool.take(SMALL_PIECE), other.take(PIECE)]
        assert values(meters) == {"buffers_in_use_bytes": 3 * PIECE + SMALL_PIECE, "buffers_kept_bytes": 0}
        pool.give_back(pieces[0])
        del pieces[1:]
        assert values(meters) == {"buffers_in_use_bytes": 0, "buffers_kept_bytes": 2 * PIECE + SMALL_PIECE}
        pool.trim(0)
        assert values(meters) == {"buffers_in_use_bytes": 0, "buffers_kept_bytes": PIECE}


class DeliveryBudgetTests:
    """How much each GET may read, and how much all hold."""

    def test_metrics(self) -> None:
        """They tell what is held, and the total."""
        meters, budget = Meters(), DeliveryBudget(total=1000)
        budget.watch(meters)
        portion = budget.join(2)
        assert values(meters) == {"get_memory_bytes": 0, "get_memory_budget_bytes": 1000}
        portion.hold(10)
        assert values(meters) == {"get_memory_bytes": 10, "get_memory_budget_bytes": 1000}
        portion.leave()
        assert values(meters)["get_memory_bytes"] == 0

    def test_few_read_in_large_pieces(self) -> None:
        """With up to ten GETs, each read has the maximum size."""
        budget = DeliveryBudget()
        portions = [budget.join(3) for _ in range(10)]
        assert {portion.next_size() for portion in portions} == {MAX_READ}

    @pytest.mark.parametrize("count", [17, 64, 150])
    def test_many_share_the_total(self, count: int) -> None:
        """With more GETs, all their reads together fit into the total."""
        budget = DeliveryBudget()
        portions = [budget.join(3) for _ in range(count)]
        assert sum(3 * portion.next_size() for portion in portions) <= DELIVERY_BYTES

    def test_who_holds_nothing_may_always_read(self) -> None:
        """A GET that holds nothing may make one smallest read, even if others hold everything."""
        budget = DeliveryBudget()
        first, second = budget.join(2), budget.join(2)
        first.hold(DELIVERY_BYTES)
        assert first.next_size() == 0
        assert second.next_size() == MIN_READ
        second.hold(MIN_READ)
        assert second.next_size() == 0
        second.release(MIN_READ)
        assert second.next_size() == MIN_READ

    def test_says_when_the_last_has_ended(self) -> None:
        """The functions in `when_idle` are called when the last GET has ended, and not before."""
        budget, told = DeliveryBudget(), list[int]()
        budget.when_idle.append(lambda: told.append(budget.count))
        first, second = budget.join(1), budget.join(1)
        first.leave()
        assert told == []
        second.leave()
        assert told == [0]

    def test_the_bound_holds_at_every_moment(self) -> None:
        """In any sequence of GETs, reads and releases the bound holds, and at the end nothing is held."""
        budget, source, portions = DeliveryBudget(), random.Random(3), list[ReadReservation]()
        for _ in range(20_000):
            kind = source.random()
            if not portions or kind < 0.05:
                portions.append(budget.join(3))
            portion = source.choice(portions)
            if kind < 0.6:
                portion.hold(portion.next_size())
            elif kind < 0.96:
                portion.release(source.randint(0, portion.held))
            else:
                portions.remove(portion)
                portion.leave()
            assert budget.held <= DELIVERY_BYTES + budget.count * MIN_READ
        for portion in portions:
            portion.leave()
        assert (budget.count, budget.held) == (0, 0)
