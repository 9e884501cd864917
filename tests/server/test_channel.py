"""What the connection does: when it reads, when it does not, and how it ends."""

from __future__ import annotations

import pytest
from twisted.internet.error import ConnectionLost
from twisted.web.http import HTTPChannel

from tests.server.wire import Connection, Response, Server, chunk, chunked_put, put, request
from tests.support import MemoryBucket, RunLater, connected
from twisted_storaged.errors import BucketError
from twisted_storaged.routing import DEFAULT_MAX_PUT, Policy, Rule
from twisted_storaged.runtime.write_buffer import PUSH_FROM
from twisted_storaged.server.channel import DRAIN_IDLE_SECONDS, IDLE_SECONDS, LINGER_BYTES, LINGER_SECONDS, REASONS
from twisted_storaged.server.request import READ_SIZE, USUAL_READ_SIZE
from twisted_storaged.server.site import ENDED_WAIT

TOO_LONG = DEFAULT_MAX_PUT + 1
EXPECT = "Expect: 100-continue"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def slow_server(size: int = 100) -> tuple[Server, RunLater]:
    """A server whose bucket makes its calls when told to, in parts of `size` bytes."""
    run = RunLater()
    bucket = MemoryBucket(part_size=size)
    bucket.run = run
    return Server(bucket), run


class PrivateNamesTests:
    """What we use of Twisted's insides."""

    def test_twisted_still_has_them(self) -> None:
        """At the end of the headers, the request line is found in these three; a rename must fail here, by name."""
        seen = []

        class Channel(HTTPChannel):
            def allHeadersReceived(self) -> None:
                seen.append((self._command, self._path, self._version))

        server = Server()
        server.site.protocol = Channel
        server.connect().send(b"PUT /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        assert seen == [(b"PUT", b"/a?b", b"HTTP/1.1")]


class ContinueTests:
    """`Expect: 100-continue`."""

    def test_is_asked_for_when_the_body_is_wanted(self) -> None:
        """Then, and not before."""
        connection = Server().connect()
        connection.send(put("a", b"", EXPECT, length=5))
        assert connection.received() == CONTINUE
        connection.send(b"hello")
        assert connection.response().status == 200

    @pytest.mark.parametrize(("key", "length", "status"), [("/a", 5, 400), ("a", TOO_LONG, 413)])
    def test_is_never_sent_with_a_refusal(self, key: str, length: int, status: int) -> None:
        """The client sends not one byte."""
        connection = Server().connect()
        connection.send(put(key, b"", EXPECT, length=length))
        assert connection.response().status == status

    def test_is_not_sent_when_there_is_no_slot(self) -> None:
        """503 comes first."""
        server = Server(put_slots=1)
        holder = server.connect()
        holder.send(put("a", length=1))
        connection = server.connect()
        connection.send(put("a", b"", EXPECT, length=5))
        assert connection.response().status == 503
        holder.lose()

    def test_is_not_sent_to_who_did_not_ask(self) -> None:
        """Nor to HTTP/1.0, which does not know it."""
        server = Server()
        for head in (put("a", b"hello"), put("a", b"hello", EXPECT).replace(b"HTTP/1.1", b"HTTP/1.0")):
            connection = server.connect()
            connection.send(head)
            assert b"100 Continue" not in connection.received()

    def test_is_case_insensitive(self) -> None:
        """RFC 9110, 10.1.1."""
        connection = Server().connect()
        connection.send(put("a", b"", "expect: 100-Continue", length=5))
        assert connection.received() == CONTINUE
        connection.lose()


class EarlyAnswerTests:
    """An answer that is given before the body is in."""

    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (put("/a", length=TOO_LONG), 400),
            (put("a", length=TOO_LONG), 413),
            (request("GET", "/storage/get/a", "Content-Length: 9999999"), 404),
            (request("POST", "/storage/get/a", "Content-Length: 9999999"), 405),
            (chunked_put("/a"), 400),
        ],
    )
    def test_closes_so_that_the_client_sees_it(self, head: bytes, status: int) -> None:
        """It says so, half-closes, and reads on for a while."""
        connection = Server().connect()
        connection.send(head + b"x" * 100)
        response = connection.response()
        assert (response.status, response.headers["connection"]) == (status, "close")
        assert connection.transport.half_closed
        assert not connection.transport.disconnecting
        assert connection.reading

    def test_no_body_is_read_before_the_decision(self) -> None:
        """What came in one read with the headers is all."""
        server = Server()
        holders = [server.connect() for _ in range(4)]
        for holder in holders:
            holder.send(put("a", length=1))
        connection = server.connect()
        connection.channel.transport.producerState = "producing"
        reads: list[bytes] = []
        data_received, connection.channel.dataReceived = connection.channel.dataReceived, reads.append
        connection.send(put("a", length=10))
        data_received(reads[0])
        assert connection.response().status == 503
        for holder in holders:
            holder.lose()

    def test_what_comes_after_is_dropped(self) -> None:
        """It is not taken for the next request."""
        server = Server()
        connection = server.connect()
        connection.send(put("/a", length=TOO_LONG) + request("DELETE", "/storage/delete/a"))
        connection.send(request("GET", "/health"))
        assert connection.received().count(b"HTTP/1.1") == 1

    def test_only_so_many_bytes_are_dropped(self) -> None:
        """Then the connection is closed."""
        connection = Server().connect()
        connection.send(put("/a", length=TOO_LONG))
        connection.send(b"x" * LINGER_BYTES)
        assert not connection.transport.disconnecting
        connection.send(b"x")
        assert connection.transport.disconnecting

    def test_only_for_so_long(self) -> None:
        """A client that sends and sends does not reset the time."""
        server = Server()
        connection = server.connect()
        connection.send(put("/a", length=TOO_LONG))
        for _ in range(LINGER_SECONDS):
            assert not connection.transport.disconnecting
            server.clock.advance(1)
            connection.send(b"x")
        assert connection.transport.disconnecting

    def test_the_timer_goes_with_the_connection(self) -> None:
        """Nothing is left behind when the client has gone."""
        server = Server()
        connection = server.connect()
        connection.send(put("/a", length=TOO_LONG))
        connection.lose()
        server.clock.advance(ENDED_WAIT)
        assert server.clock.getDelayedCalls() == []

    def test_over_tls_there_is_no_half_close(self) -> None:
        """There, it would close the socket beneath."""
        connection = Server().connect()
        connection.channel.isSecure = lambda: True
        connection.send(put("/a", length=TOO_LONG))
        assert connection.response().status == 400
        assert not connection.transport.half_closed
        assert not connection.transport.disconnecting

    def test_a_whole_body_keeps_the_connection(self) -> None:
        """Only an early answer ends it."""
        connection = Server().connect()
        connection.send(put("a", b"hello"))
        assert "connection" not in connection.response().headers
        connection.send(request("GET", "/storage/get/a"))
        assert connection.response().body == b"hello"
        assert not connection.transport.disconnecting


class PersistenceTests:
    """Whether the connection stays for another request."""

    @pytest.mark.parametrize("option", ["close", "Close", "keep-alive,close", "x, close", "x\r\nConnection: close"])
    def test_not_when_the_client_says_so(self, option: str) -> None:
        """In a list, or in another line of it, too. RFC 9112, 9.6."""
        connection = Server().connect()
        connection.send(request("GET", "/health", f"Connection: {option}"))
        assert connection.response().headers["connection"] == "close"
        assert connection.transport.disconnecting

    @pytest.mark.parametrize("option", ["keep-alive", "closed", "te"])
    def test_but_for_that_it_does(self, option: str) -> None:
        """As is usual since HTTP/1.1."""
        connection = Server().connect()
        connection.send(request("GET", "/health", f"Connection: {option}"))
        assert "connection" not in connection.response().headers
        assert not connection.transport.disconnecting


class RoundTests:
    """What is written in one round of the reactor."""

    def test_leaves_in_one_piece(self) -> None:
        """Head and body, at its end."""
        server = Server()
        server.bucket.objects["a"] = b"hello"
        connection = server.connect()
        pieces: list[bytes] = []
        connection.transport.write = pieces.append
        connection.channel.dataReceived(request("GET", "/storage/get/a"))
        assert pieces == []
        server.clock.advance(0)
        assert [piece.partition(b"\r\n\r\n")[2] for piece in pieces] == [b"hello"]

    def test_is_not_collected_without_end(self) -> None:
        """Much of it leaves before."""
        server = Server(MemoryBucket(page=100))
        server.bucket.objects = {f"{number:04}" + "k" * 1000: b"" for number in range(1000)}
        connection, sizes = server.connect(), []
        connection.transport.write = lambda data: sizes.append(len(data))
        connection.channel.dataReceived(request("GET", "/storage/list"))
        server.clock.advance(0)
        assert sum(sizes) > 1_000_000
        assert max(sizes) < PUSH_FROM + 110_000

    @pytest.mark.parametrize("first", [request("GET", "/health"), put("a", b"hello"), chunked_put("a") + chunk(b"")])
    def test_leaves_before_a_refusal_of_what_came_with_it(self, first: bytes) -> None:
        """Which Twisted writes itself."""
        connection = Server().connect()
        connection.channel.dataReceived(first + b"what?\r\n\r\n")
        received = connection.received()
        assert [received.find(b"HTTP/1.1 %d" % status) for status in (200, 400)] == [0, received.rfind(b"HTTP/1.1")]

    def test_leaves_before_the_connection_is_closed(self) -> None:
        """In the same round."""
        server = Server()
        connection = server.connect()
        told: list[bytes] = []
        connection.transport.write = told.append
        connection.transport.loseConnection = lambda: told.append(b"closed")
        connection.channel.dataReceived(request("GET", "/health", "Connection: close"))
        assert told[0].startswith(b"HTTP/1.1 200 OK")
        assert told[1:] == [b"closed"]


class BackPressureTests:
    """The peer's socket is read as fast as the bucket takes it, and no faster."""

    def test_reading_stops_while_the_bucket_is_full(self) -> None:
        """And goes on when it is not."""
        server, run = slow_server(100_000)
        connection = server.connect()
        size = 3 * READ_SIZE
        connection.send(put("a", length=size))
        connection.send(b"x" * size)
        assert not connection.reading
        assert connection.unread == size - READ_SIZE
        while run.calls:
            run.step()
            connection.flow()
        assert connection.response().status == 200
        assert len(server.bucket.objects["a"]) == size

    def test_a_body_that_nobody_wants_yet_stays_in_the_socket(self) -> None:
        """Beyond what came in one read with the headers."""
        server, run = slow_server()
        server.bucket.objects["a"] = b"x"
        connection = server.connect()
        connection.send(request("GET", "/storage/get/a", "Content-Length: 9999999"))
        connection.send(b"x" * 100_000)
        assert not connection.reading
        assert connection.unread == 100_000
        run.run()
        assert connection.response().body == b"x"

    def test_large_bodies_are_read_in_large_pieces(self) -> None:
        """Only while they are: other requests need no such buffers."""
        server = Server(MemoryBucket(part_size=4 << 20))
        connection = server.connect()
        assert connection.transport.bufferSize == USUAL_READ_SIZE
        connection.send(put("a", length=READ_SIZE + 1))
        assert connection.transport.bufferSize == READ_SIZE
        connection.send(b"x" * (READ_SIZE + 1))
        assert connection.response().status == 200
        assert connection.transport.bufferSize == USUAL_READ_SIZE

    def test_a_body_is_stored_as_it_comes(self) -> None:
        """Parts leave long before its end."""
        server, run = slow_server()
        connection = server.connect()
        connection.send(put("a", length=1000))
        connection.send(b"x" * 101)
        assert run.names == ["begin"]
        run.step()
        assert run.names == ["part"]
        connection.lose()
        run.run()

    def test_the_peers_leaving_is_noticed_after_the_body(self) -> None:
        """While the bucket completes, the socket is read."""
        server, run = slow_server()
        connection = server.connect()
        connection.send(put("a", b"x" * 350))
        assert run.calls
        assert connection.reading
        connection.lose()
        run.run()
        assert server.bucket.objects == {"a": b"x" * 350}
        assert connection.received() == b""
        assert server.slots.free == 4


class InPlaceTests:
    """Large bodies of known length are read into the memory of their part."""

    @pytest.mark.parametrize("size", [USUAL_READ_SIZE + 1, 200_000, 250_000])
    @pytest.mark.parametrize("at_once", [1000, 100_000, 1_000_000])
    def test_the_bytes_arrive(self, size: int, at_once: int) -> None:
        """And a request that follows at once is none of them."""
        server = Server(MemoryBucket(part_size=100_000))
        connection = server.connect(in_place=True)
        connection.transport.at_once = at_once
        data = bytes(range(256)) * (size // 256 + 1)
        connection.send(put("a", length=size))
        connection.send(data[:size] + request("GET", "/health"))
        assert server.bucket.objects["a"] == data[:size]
        assert connection.transport.reads_in_place > 0
        assert connection.received().count(b"HTTP/1.1 200 OK") == 2

    def test_bytes_that_came_with_the_headers_are_not_lost(self) -> None:
        """They took the usual way."""
        server = Server(MemoryBucket(part_size=100_000))
        connection = server.connect(in_place=True)
        connection.send(put("a", b"x" * 50_000 + b"y" * 100_000))
        assert server.bucket.objects["a"] == b"x" * 50_000 + b"y" * 100_000
        assert connection.transport.reads_in_place > 0

    @pytest.mark.parametrize("end", [b"", OSError()])
    def test_a_peer_that_leaves_is_noticed(self, end: bytes | OSError) -> None:
        """By a read of nothing, or an error."""
        server = Server(MemoryBucket(part_size=100_000))
        connection = server.connect(in_place=True)
        connection.send(put("a", length=300_000))
        connection.send(b"x" * 150_000)
        connection.end_in_place(end)
        assert (server.bucket.objects, server.slots.free) == ({}, 4)

    def test_the_socket_stays_full_while_the_bucket_is(self) -> None:
        """Back-pressure is the same."""
        server, run = slow_server(100_000)
        connection = server.connect(in_place=True)
        connection.send(put("a", length=1_000_000))
        connection.send(b"x" * 1_000_000)
        assert not connection.reading
        assert connection.unread >= 700_000
        while run.calls:
            run.step()
            connection.flow()
        assert connection.response().status == 200

    def test_a_stall_is_noticed(self) -> None:
        """And progress puts it off."""
        server = Server(MemoryBucket(part_size=100_000))
        connection = server.connect(in_place=True)
        connection.send(put("a", length=300_000))
        for _ in range(3):
            server.clock.advance(IDLE_SECONDS - 1)
            connection.send(b"x" * 10_000)
            assert connection.received() == b""
        server.clock.advance(IDLE_SECONDS)
        assert connection.response().status == 408

    def test_a_failure_ends_it(self) -> None:
        """The rest is dropped in the usual way, and the connection closed."""
        server, run = slow_server(100_000)
        connection = server.connect(in_place=True)
        connection.send(put("a", length=1_000_000))
        connection.send(b"x" * 250_000)
        server.bucket.failing = BucketError("down")
        server.bucket.fail_parts = True
        run.run()
        assert connection.response().status == 500
        connection.send(b"x" * 100_000)
        assert connection.unread == 0
        assert "doRead" not in vars(connection.transport)


class SendInPlaceTests:
    """Large answers are sent from where their bytes are."""

    DATA = bytes(range(256)) * 16_000

    def get(self, *takes: int | OSError) -> tuple[RunLater, Connection]:
        """A GET of an object of four chunks, of whose bytes the socket takes so many with each send."""
        server, run = slow_server()
        server.bucket.objects["a"] = self.DATA
        connection = server.connect(in_place=True)
        connection.transport.takes = list(takes)
        connection.send(request("GET", "/storage/get/a"))
        run.step()
        return run, connection

    def test_the_bytes_arrive(self) -> None:
        """However little the socket takes."""
        run, connection = self.get(1, 0, 100_000, BlockingIOError(), 1_000_000, 5)
        for _ in range(20):
            run.run()
            connection.transport.doWrite()
        assert connection.response().body == self.DATA

    def test_the_bucket_waits_for_the_socket(self) -> None:
        """One chunk on its way, two read ahead, no more."""
        run, connection = self.get(1000, BlockingIOError())
        run.run()
        assert len(connection.received()) < 2000
        connection.transport.doWrite()
        assert run.names == []
        connection.transport.doWrite()
        assert run.names == ["read"]
        run.run()
        assert connection.received().endswith(self.DATA[-1000:])

    def test_a_peer_that_leaves_is_noticed(self) -> None:
        """By what the reactor is told."""
        run, connection = self.get(1000, ConnectionResetError())
        reason = connection.transport.doWrite()
        assert isinstance(reason, ConnectionLost)
        connection.channel.stopProducing()
        connection.lose(reason)
        run.run()

    def test_what_the_transport_has_still_to_send_goes_first(self) -> None:
        """The usual way, then."""
        server, run = slow_server()
        server.bucket.objects["a"] = self.DATA
        connection = server.connect(in_place=True)
        connection.transport.dataBuffer = b"of an earlier answer"
        connection.transport.send = None
        connection.send(request("GET", "/storage/get/a"))
        run.run()
        assert connection.response().body == self.DATA


class PeerGoneTests:
    """A peer that leaves in the middle."""

    @pytest.mark.parametrize("reason", [None, ConnectionLost()])
    @pytest.mark.parametrize("sent", [0, 50, 350])
    def test_nothing_is_stored_and_the_slot_is_free(self, sent: int, reason: Exception | None) -> None:
        """Also when it closed politely, with a FIN."""
        server = Server(MemoryBucket(part_size=100))
        connection = server.connect()
        connection.send(put("a", length=1000))
        connection.send(b"x" * sent)
        assert server.slots.free == 3
        connection.lose(reason)
        assert server.bucket.objects == {}
        assert server.slots.free == 4

    def test_the_slot_is_free_only_after_the_abort(self) -> None:
        """Until then its memory and its upload are there."""
        server, run = slow_server()
        connection = server.connect()
        connection.send(put("a", length=1000))
        connection.send(b"x" * 101)
        run.step()
        connection.lose()
        assert run.names == ["part"]
        run.step()
        assert run.names == ["abort"]
        assert server.slots.free == 3
        run.step()
        assert server.slots.free == 4

    def test_a_chunked_body_that_just_ends_is_not_whole(self) -> None:
        """Without the last chunk, there is no knowing."""
        server = Server()
        connection = server.connect()
        connection.send(chunked_put("a") + chunk(b"hello"))
        connection.lose()
        assert server.bucket.objects == {}

    def test_the_old_object_stays(self) -> None:
        """An overwrite that did not happen changes nothing."""
        server = Server()
        server.ask(put("a", b"old"))
        connection = server.connect()
        connection.send(put("a", b"new", length=10))
        connection.lose()
        assert server.bucket.objects == {"a": b"old"}

    def test_a_reader_that_leaves_frees_the_object(self) -> None:
        """And nobody is the worse for it."""
        server, run = slow_server()
        server.bucket.objects["a"] = b"x" * 3_000_000
        connection = server.connect()
        connection.send(request("GET", "/storage/get/a"))
        run.step()
        connection.channel.stopProducing()
        connection.lose()
        run.run()
        assert server.ask(request("GET", "/health")).status == 200


class MalformedTests:
    """What is no HTTP."""

    @pytest.mark.parametrize("bad", [b"zz\r\n", b"-1\r\n", b"5\r\nhelloXX", b"5;\x00\r\nhello\r\n"])
    def test_bad_chunks(self, bad: bytes) -> None:
        """400, nothing stored, the slot free, and nothing that comes after is taken for a request."""
        server = Server()
        connection = server.connect()
        connection.send(chunked_put("a") + chunk(b"hello"))
        connection.send(bad)
        data = connection.received()
        assert data.startswith(b"HTTP/1.1 400 ")
        assert data.count(b"HTTP/1.1") == 1
        assert connection.transport.half_closed
        assert (server.bucket.objects, server.slots.free) == ({}, 4)
        connection.send(request("GET", "/health"))
        assert connection.received() == b""

    @pytest.mark.parametrize(
        "headers",
        [
            ("Content-Length: 5",),
            ("Transfer-Encoding: chunked",),
            ("Transfer-Encoding: gzip",),
        ],
    )
    def test_a_body_of_two_lengths(self, headers: tuple[str, ...]) -> None:
        """Who is right? Nobody: 400. See RFC 9112, 6.3."""
        server = Server()
        connection = server.connect()
        connection.send(put("a", b"", *headers, length=3) + b"abc" + request("GET", "/health"))
        data = connection.received()
        assert data.startswith(b"HTTP/1.1 400 ")
        assert data.count(b"HTTP/1.1") == 1
        assert server.bucket.objects == {}
        assert server.slots.free == 4

    @pytest.mark.parametrize("length", ["-1", "abc", "1e3", " "])
    def test_a_length_that_is_no_number(self, length: str) -> None:
        """400."""
        connection = Server().connect()
        connection.send(f"PUT /storage/put/a HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        assert connection.received().startswith(b"HTTP/1.1 400 ")

    @pytest.mark.parametrize("more", ["", "Expect: 100-continue\r\n"])
    @pytest.mark.parametrize("digits", [19, 4300, 4301, 7000])
    def test_a_length_of_many_digits(self, digits: int, more: str) -> None:
        """A length that is too large for int() is refused as any that is over the cap is."""
        server = Server()
        connection = server.connect()
        length = "1" * digits
        connection.send(f"PUT /storage/put/a HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {length}\r\n\r\n".encode())
        assert connection.response().status == 413
        assert server.slots.free == 4

    def test_a_length_with_many_zeros(self) -> None:
        """Zeros before a length do not make it larger."""
        server = Server()
        connection = server.connect()
        zeros = "0" * 5000
        connection.send(f"PUT /storage/put/a HTTP/1.1\r\nHost: x\r\nContent-Length: {zeros}5\r\n\r\nhello".encode())
        assert connection.response().status == 200
        assert server.bucket.objects == {"a": b"hello"}

    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000, 431),
            (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
            (b"GET /health HTTP/1.1\r\n" + b"X: yyyyyyyy\r\n" * 2000 + b"\r\n", 431),
            (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 600 + b"\r\n", 431),
            (b"GET /health?" + b"x" * 20_000, 414),
            (b"GET /health?" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        ],
    )
    def test_a_head_that_is_too_large(self, head: bytes, status: int) -> None:
        """An oversized request line or header field is refused once, and the connection ends so that this is seen."""
        server = Server()
        connection = server.connect()
        connection.send(head)
        connection.send(request("GET", "/health"))
        data = connection.received()
        assert data.startswith(b"HTTP/1.1 %d " % status)
        assert data.count(b"HTTP/1.1") == 1
        assert connection.transport.half_closed


class TimeoutTests:
    """Clients that do nothing."""

    def test_idle_connections_are_closed(self) -> None:
        """After a minute."""
        server = Server()
        connection = server.connect()
        connection.send(request("GET", "/health"))
        server.clock.advance(IDLE_SECONDS - 1)
        assert not connection.transport.disconnecting
        server.clock.advance(1)
        assert connection.transport.disconnecting

    def test_a_client_that_still_reads_the_last_answer_is_not_idle(self) -> None:
        """However slowly; when it has all of it, its minute begins."""
        server = Server()
        connection = server.connect()
        connection.send(request("GET", "/health"))
        connection.transport.dataBuffer, connection.transport._tempDataBuffer = b"the rest of it", []
        server.clock.advance(IDLE_SECONDS * 3)
        assert not connection.transport.disconnecting
        connection.transport.dataBuffer = b""
        server.clock.advance(IDLE_SECONDS)
        assert connection.transport.disconnecting

    def test_a_body_that_stalls_is_given_up(self) -> None:
        """408, nothing stored, the slot free."""
        server = Server()
        connection = server.connect()
        connection.send(put("a", b"hello", length=10))
        server.clock.advance(IDLE_SECONDS)
        response = connection.response()
        assert (response.status, response.line) == (408, "body stalled")
        assert response.headers["connection"] == "close"
        assert (server.bucket.objects, server.slots.free) == ({}, 4)

    def test_a_body_that_waits_for_us_is_not(self) -> None:
        """However long the bucket takes."""
        server, run = slow_server()
        connection = server.connect()
        connection.send(put("a", length=400))
        connection.send(b"x" * 350)
        assert not connection.reading
        server.clock.advance(IDLE_SECONDS * 3)
        connection.send(b"x" * 50)
        while run.calls:
            run.step()
            connection.flow()
        assert connection.response().status == 200

    def test_a_stall_after_that_is_noticed_again(self) -> None:
        """The timer was put off, not lost."""
        server, run = slow_server()
        connection = server.connect()
        connection.send(put("a", length=4000))
        connection.send(b"x" * 350)
        server.clock.advance(IDLE_SECONDS * 3)
        run.run()
        assert connection.reading
        server.clock.advance(IDLE_SECONDS)
        run.run()
        assert connection.response().status == 408

    def test_headers_that_never_end_are_given_up(self) -> None:
        """As are half request lines."""
        server = Server()
        connection = server.connect()
        connection.send(b"PUT /storage/put/a HTTP/1.1\r\nHost: x\r\n")
        server.clock.advance(IDLE_SECONDS)
        connection.lose()
        assert server.clock.getDelayedCalls() == []

    def test_a_long_answer_has_no_time_limit(self) -> None:
        """A reader may compute between two reads."""
        server, run = slow_server()
        server.bucket.objects["a"] = b"x" * 10
        connection = server.connect()
        connection.send(request("GET", "/storage/get/a"))
        server.clock.advance(IDLE_SECONDS * 10)
        run.run()
        assert connection.response().body == b"x" * 10


class DrainTests:
    """A site that stops."""

    def test_connections_that_are_idle_for_long_close_at_once(self) -> None:
        """A connection that has been idle for a second closes when the drain begins, and then the site is drained."""
        server = Server()
        connection = server.connect()
        connection.send(request("GET", "/health"))
        server.clock.advance(DRAIN_IDLE_SECONDS)
        drained = server.site.drain()
        assert connection.transport.disconnecting
        assert not drained.called
        connection.lose()
        assert drained.called

    def test_a_connection_that_was_just_used_has_a_second(self) -> None:
        """The second is counted from its last byte, not from the beginning of the drain."""
        server = Server()
        connection = server.connect()
        server.clock.advance(IDLE_SECONDS / 2)
        connection.send(request("GET", "/health"))
        server.clock.advance(DRAIN_IDLE_SECONDS * 0.75)
        server.site.drain()
        server.clock.advance(DRAIN_IDLE_SECONDS * 0.2)
        assert not connection.transport.disconnecting
        server.clock.advance(DRAIN_IDLE_SECONDS * 0.05)
        assert connection.transport.disconnecting
        connection.lose()
        server.clock.advance(ENDED_WAIT)
        assert server.clock.getDelayedCalls() == []

    @pytest.mark.parametrize("next_one", [request("GET", "/health"), put("a", b"hello"), request("GET", "/x", "A:  b")])
    def test_a_request_within_that_second_is_served(self, next_one: bytes) -> None:
        """Its response says that it is the last, and the connection closes after it."""
        server = Server()
        connection = server.connect()
        connection.send(request("GET", "/health"))
        assert "connection" not in connection.response().headers
        server.site.drain()
        server.clock.advance(DRAIN_IDLE_SECONDS * 0.9)
        connection.send(next_one)
        response = connection.response()
        assert (response.status, response.headers["connection"]) == (404 if b"/x" in next_one else 200, "close")
        assert connection.transport.disconnecting
        connection.lose()

    @pytest.mark.parametrize("draining", [True, False])
    def test_a_request_that_has_arrived_is_served(self, draining: bool) -> None:
        """A connection with a request in its socket is not idle, for however long the process has not read it."""
        server = Server()
        channel = server.site.buildProtocol(None)
        with connected(channel) as (transport, client):
            transport.getPeer = transport.getHost = lambda: None
            channel.makeConnection(transport)
            client.sendall(request("GET", "/health"))
            if draining:
                server.clock.advance(DRAIN_IDLE_SECONDS)
                server.site.drain()
            else:
                server.clock.advance(IDLE_SECONDS)
            assert not transport.disconnecting
            transport.doRead()
            server.clock.advance(0)
            response = Response(client.recv(1000))
            assert (response.status, response.headers.get("connection")) == (200, "close" if draining else None)
            channel.cancel_timer()

    def test_a_body_under_way_may_pause_for_longer(self) -> None:
        """The second is for idle connections: a PUT whose client pauses is not idle, also if it came in that second."""
        server = Server()
        connection = server.connect()
        server.site.drain()
        connection.send(put("a", b"he", length=5))
        server.clock.advance(IDLE_SECONDS - 1)
        connection.send(b"llo")
        response = connection.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert server.bucket.objects == {"a": b"hello"}
        connection.lose()

    def test_a_response_that_has_begun_before_the_drain(self) -> None:
        """Its head could not say that the connection ends, so that a client may send one more request after it."""
        server = Server()
        server.bucket.objects["a"] = bytes(2 << 20)
        connection = server.connect()
        connection.full_after_each_write()
        connection.send(request("GET", "/storage/get/a"))
        server.site.drain()
        server.clock.advance(DRAIN_IDLE_SECONDS * 2)
        while connection.channel.requests:
            connection.channel.resumeProducing()
            connection.flow()
        connection.channel.resumeProducing()
        response = connection.response()
        assert (len(response.body), "connection" in response.headers) == (2 << 20, False)
        server.clock.advance(DRAIN_IDLE_SECONDS * 0.9)
        assert not connection.transport.disconnecting
        connection.send(request("GET", "/health"))
        assert connection.response().headers["connection"] == "close"
        assert connection.transport.disconnecting
        connection.lose()

    @pytest.mark.parametrize("part", [b"GET /hea", b"GET /health HTTP/1.1\r\nHos"])
    def test_a_part_of_a_head_does_not_hold_it_up(self, part: bytes) -> None:
        """A connection on which a part of a head has come is idle: it closes after a second without a further byte."""
        server = Server()
        connection = server.connect()
        server.site.drain()
        connection.send(part)
        server.clock.advance(DRAIN_IDLE_SECONDS * 0.9)
        assert not connection.transport.disconnecting
        server.clock.advance(DRAIN_IDLE_SECONDS * 0.1)
        assert connection.transport.disconnecting
        assert not connection.transport.half_closed
        assert connection.received() == b""
        connection.lose()

    def test_a_client_that_still_reads_is_not_idle(self) -> None:
        """A connection with an unsent response stays; when the client has all of it, it has a second."""
        server = Server()
        connection = server.connect()
        connection.send(request("GET", "/health"))
        connection.transport.dataBuffer, connection.transport._tempDataBuffer = b"the rest of it", []
        server.clock.advance(DRAIN_IDLE_SECONDS * 2)
        server.site.drain()
        server.clock.pump([DRAIN_IDLE_SECONDS * 0.5] * 5)
        assert not connection.transport.disconnecting
        connection.transport.dataBuffer = b""
        connection.channel.resumeProducing()
        server.clock.advance(DRAIN_IDLE_SECONDS * 0.9)
        assert not connection.transport.disconnecting
        server.clock.advance(DRAIN_IDLE_SECONDS * 0.1)
        assert connection.transport.disconnecting
        connection.lose()

    def test_an_early_response_is_still_seen(self) -> None:
        """A connection that drops the rest of a refused body goes on with that."""
        server = Server()
        connection = server.connect()
        connection.send(put("/a", length=TOO_LONG))
        server.site.drain()
        server.clock.advance(DRAIN_IDLE_SECONDS)
        assert not connection.transport.disconnecting
        server.clock.advance(LINGER_SECONDS)
        assert connection.transport.disconnecting
        connection.lose()

    def test_over_tls_an_idle_client_is_not_waited_for(self) -> None:
        """TLS would be closed when the client has answered the closing alert, for which an idle one does not look."""
        server = Server()
        connection = server.connect()
        connection.channel.isSecure = lambda: True
        server.clock.advance(DRAIN_IDLE_SECONDS)
        server.site.drain()
        assert (connection.transport.disconnecting, connection.transport.aborted) == (True, False)
        server.clock.advance(DRAIN_IDLE_SECONDS)
        assert connection.transport.aborted
        connection.lose()

    def test_a_request_under_way_is_answered(self) -> None:
        """Its connection closes after that."""
        server = Server()
        connection = server.connect()
        connection.send(put("a", length=5))
        server.site.drain()
        assert not connection.transport.disconnecting
        connection.send(b"hello")
        response = connection.response()
        assert (response.status, response.headers["connection"]) == (200, "close")
        assert connection.transport.disconnecting
        connection.lose()

    def test_a_request_that_comes_late_is_the_last(self) -> None:
        """Its headers were on the way."""
        server = Server()
        connection = server.connect()
        connection.send(b"GET /health HTTP/1.1\r\n")
        server.site.drain()
        connection.send(b"Host: x\r\n\r\n")
        assert connection.response().headers["connection"] == "close"
        assert connection.transport.disconnecting
        connection.lose()

    def test_the_rest_is_dropped(self) -> None:
        """When the time is up."""
        server = Server()
        connection = server.connect()
        connection.send(put("a", length=5))
        drained = server.site.drain()
        server.site.abort()
        assert connection.transport.aborted
        connection.lose()
        assert drained.called
        assert server.slots.free == 4

    def test_nothing_to_drain(self) -> None:
        """Is drained."""
        assert Server().site.drain().called


class ProtocolsTests:
    """What is spoken."""

    def test_no_http2(self) -> None:
        """There, one paused body stalls all others on its connection."""
        assert Server().site.acceptableProtocols() == [b"http/1.1"]

    def test_a_rule_may_allow_nothing(self) -> None:
        """A cap of 0 still takes empty objects."""
        server = Server(policy=Policy([Rule("", 0)]))
        assert server.ask(put("a")).status == 200
        assert server.ask(put("a", b"x")).status == 413


@pytest.mark.parametrize(
    ("status", "phrase"),
    [
        (408, b"Request Timeout"),
        (413, b"Content Too Large"),
        (416, b"Range Not Satisfiable"),
        (504, b"Gateway Timeout"),
    ],
)
def test_reason_phrases(status: int, phrase: bytes) -> None:
    """Reason phrases are those of RFC 9110, 15, where Twisted has older ones."""
    assert REASONS[status] == phrase


def test_a_reason_phrase_is_sent() -> None:
    """The status line of a response has the reason phrase."""
    connection = Server().connect()
    connection.send(put("a", length=TOO_LONG))
    assert connection.received().startswith(b"HTTP/1.1 413 Content Too Large\r\n")
