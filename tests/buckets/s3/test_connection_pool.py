"""Connections to S3 on the reactor, and their pool, with a clock and transports in memory."""

from __future__ import annotations

from collections.abc import Callable
from socket import socket
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from tests.support import Consumer, SpliceConsumer, connected, result
from twisted_storaged.buckets.s3 import connection_pool as connection_module
from twisted_storaged.buckets.s3.connection_pool import KEEP_IDLE, READ_SIZE, Connection, ConnectionPool, ReadOptions
from twisted_storaged.protocol.http1 import MAX_COLLECTED, ConnectionFailed, Response
from twisted_storaged.runtime.concurrency import ConsumerGone

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
CHUNK = 1 << 20


class Transport(StringTransport):
    bufferSize = 1 << 16
    aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def abortConnection(self) -> None:
        self.aborted = self.disconnecting = True


class Endpoint:
    """Connects at once, to transports that the test holds."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.failing: Exception | None = None
        self.make: Callable[[], Any] = Transport

    def connect(self, factory: Any) -> Deferred[Connection]:
        if self.failing is not None:
            return fail(self.failing)
        connection = factory.buildProtocol(None)
        connection.makeConnection(self.make())
        self.connections.append(connection)
        return succeed(connection)


class Made:
    """A pool with such an endpoint."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.endpoint = Endpoint()
        self.pool = ConnectionPool(self.endpoint, self.clock, 60)  # type: ignore[arg-type]
        self.pool.start()

    def ask(self, once: bool = False, **options: Any) -> Deferred[Response]:
        return Deferred.fromCoroutine(self.pool.ask((b"request",), ReadOptions(**options), once))

    def open(self, **options: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.pool.open((b"request",), ReadOptions(streamed=True, **options)))

    def connection(self, number: int = -1) -> Any:
        return self.endpoint.connections[number]

    def stream(self, early: bytes = b"") -> Any:
        """A response whose body is still to come."""
        asked = self.open()
        self.connection().dataReceived(LARGE + early)
        response, body = result(asked)
        assert response.status == 200
        return body


class PoolTests:
    """The connection that a request is sent on."""

    def test_a_connection_is_used_again(self) -> None:
        """A connection is reused after its response has ended."""
        made = Made()
        for _ in range(3):
            asked = made.ask()
            made.connection().dataReceived(OK)
            answer = result(asked)
            assert (answer.status, answer.body) == (200, b"hi")
        assert len(made.endpoint.connections) == 1

    def test_requests_at_once_have_one_each(self) -> None:
        """Concurrent requests have a connection each, as there is no pipelining."""
        made = Made()
        asked = [made.ask() for _ in range(3)]
        assert len(made.endpoint.connections) == 3
        for connection in made.endpoint.connections:
            connection.dataReceived(OK)
        assert all(result(one).status == 200 for one in asked)

    def test_only_so_many_are_kept(self) -> None:
        """Idle connections beyond the limit are closed."""
        made = Made()
        asked = [made.ask() for _ in range(KEEP_IDLE + 3)]
        for connection in made.endpoint.connections:
            connection.dataReceived(OK)
        for one in asked:
            result(one)
        assert sum(made.connection(number).transport.disconnecting for number in range(KEEP_IDLE + 3)) == 3

    def test_a_connection_that_is_to_be_closed_is(self) -> None:
        """A connection whose response says `Connection: close` is closed."""
        made = Made()
        asked = made.ask()
        made.connection().dataReceived(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        result(asked)
        assert made.connection().transport.disconnecting
        made.ask()
        assert len(made.endpoint.connections) == 2

    def test_one_that_closed_while_idle_is_forgotten(self) -> None:
        """A connection that S3 closed while it was idle is not used again."""
        made = Made()
        asked = made.ask()
        made.connection().dataReceived(OK)
        result(asked)
        made.connection().connectionLost(Failure(ConnectionDone()))
        made.ask()
        assert len(made.endpoint.connections) == 2

    def test_one_that_closes_as_it_is_used_again_is_replaced(self) -> None:
        """A request on a reused connection that S3 closes without a response is sent again on a new one."""
        made = Made()
        asked = made.ask()
        made.connection().dataReceived(OK)
        result(asked)
        again = made.ask()
        made.connection().connectionLost(Failure(ConnectionDone()))
        made.connection().dataReceived(OK)
        assert result(again).status == 200

    def test_unless_it_is_to_go_out_once(self) -> None:
        """A request that must be sent once fails if S3 closes its reused connection."""
        made = Made()
        asked = made.ask()
        made.connection().dataReceived(OK)
        result(asked)
        again = made.ask(once=True)
        made.connection().connectionLost(Failure(ConnectionDone()))
        with pytest.raises(ConnectionFailed):
            result(again)
        assert len(made.endpoint.connections) == 1

    @pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200"])
    def test_a_new_one_that_closes_is_a_failure(self, said: bytes) -> None:
        """A request fails if S3 closes its new connection, or a reused one within the response."""
        made = Made()
        asked = made.ask()
        if said:
            made.connection().dataReceived(OK)
            result(asked)
            asked = made.ask()
            made.connection().dataReceived(said)
        made.connection().connectionLost(Failure(ConnectionDone()))
        with pytest.raises(ConnectionFailed, match="S3 closed the connection"):
            result(asked)

    def test_nobody_there(self) -> None:
        """A refused connection is reported as such."""
        made = Made()
        made.endpoint.failing = ConnectError("refused")
        with pytest.raises(ConnectionFailed, match="no connection to S3"):
            result(made.ask())

    def test_no_http(self) -> None:
        """A response that is not HTTP aborts the connection."""
        made = Made()
        asked = made.ask()
        made.connection().dataReceived(b"220 smtp\r\n\r\n")
        with pytest.raises(ConnectionFailed, match="not an HTTP response"):
            result(asked)
        assert made.connection().transport.aborted

    def test_bytes_that_nobody_asked_for(self) -> None:
        """Bytes without a request abort the connection."""
        made = Made()
        asked = made.ask()
        made.connection().dataReceived(OK)
        result(asked)
        made.connection().dataReceived(OK)
        assert made.connection().transport.aborted


class SilenceTests:
    """An S3 that sends nothing."""

    def test_is_given_up(self) -> None:
        """A request is given up after the read timeout, and not before."""
        made = Made()
        asked = made.ask()
        made.clock.pump([1] * 59)
        assert not asked.called
        made.clock.pump([1] * 2)
        with pytest.raises(ConnectionFailed, match="S3 was silent for 60 s"):
            result(asked)
        assert made.connection().transport.aborted

    def test_a_body_that_is_leaving_gives_it_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An S3 that takes a body slowly is not silent; one that takes no more of it is."""
        queued = [300_000]
        monkeypatch.setattr(connection_module, "queued_bytes", lambda _: queued[0])
        made = Made()
        asked = made.ask()
        for _ in range(4):
            made.clock.pump([1] * 62)
            assert not asked.called
            queued[0] -= 50_000
        made.clock.pump([1] * 130)
        with pytest.raises(ConnectionFailed, match="S3 was silent"):
            result(asked)

    def test_a_body_that_is_leaving_has_no_more_time_than_the_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A body that is taken slowly is given up at the deadline of the request."""
        queued = [300_000]
        monkeypatch.setattr(connection_module, "queued_bytes", lambda _: queued[0])
        made = Made()
        asked = made.ask(until=100)
        for _ in range(103):
            queued[0] -= 10
            made.clock.advance(1)
        with pytest.raises(ConnectionFailed):
            result(asked)

    def test_each_byte_gives_it_time(self) -> None:
        """A response that comes byte by byte is not given up."""
        made = Made()
        asked = made.ask()
        for number in range(len(OK)):
            made.clock.pump([1] * 50)
            made.connection().dataReceived(OK[number : number + 1])
        assert result(asked).body == b"hi"

    def test_it_is_not_s3_that_is_silent_while_the_client_is_slow(self) -> None:
        """The read timeout does not run while the client is slow, nor between requests."""
        made = Made()
        stream, consumer = made.stream(), Consumer(paused=True)
        made.clock.pump([1] * 100)
        done = stream.deliver(consumer, lambda: CHUNK)
        made.clock.pump([1] * 100)
        assert not made.connection().transport.aborted
        consumer.producer.resumeProducing()
        made.connection().dataReceived(b"0123456789")
        result(done)
        made.clock.pump([1] * 100)
        assert not made.connection().transport.aborted

    def test_silence_in_the_middle_of_a_body(self) -> None:
        """Silence in the middle of a body fails the delivery."""
        made = Made()
        done = made.stream().deliver(Consumer(), lambda: CHUNK)
        made.clock.pump([1] * 61)
        with pytest.raises(ConnectionFailed, match="silent"):
            result(done)

    def test_a_little_may_be_there_that_was_not_worth_a_look(self) -> None:
        """The low watermark is reset once before S3 counts as silent, as fewer bytes may have come."""
        made = Made()
        done = made.stream().deliver(Consumer(), lambda: CHUNK)
        hurries = iter([True, False])
        made.connection().reset_low_watermark = lambda: next(hurries)
        made.clock.pump([1] * 61)
        assert not done.called
        made.clock.pump([1] * 2)
        with pytest.raises(ConnectionFailed, match="silent"):
            result(done)

    def test_a_request_may_have_less_time(self) -> None:
        """A request with a time limit is given up then, whatever bytes come."""
        made = Made()
        asked = made.ask(until=20.0)
        for byte in OK[:20]:
            made.clock.pump([1])
            made.connection().dataReceived(bytes([byte]))
        assert not asked.called
        made.clock.pump([1] * 2)
        with pytest.raises(ConnectionFailed):
            result(asked)
        assert made.connection().transport.aborted

    def test_a_body_that_has_begun_may_take_longer(self) -> None:
        """The time limit of a request does not hold for a body that is streamed."""
        made = Made()
        asked = made.open(until=20.0)
        made.connection().dataReceived(LARGE)
        _, stream = result(asked)
        done = stream.deliver(Consumer(), lambda: CHUNK)
        made.clock.pump([1] * 50)
        made.connection().dataReceived(b"0123456789")
        result(done)

    def test_the_next_request_has_its_full_time(self) -> None:
        """The next request on a connection has the full read timeout."""
        made = Made()
        made.ask(until=20.0)
        made.connection().dataReceived(OK)
        asked = made.ask()
        made.clock.pump([1] * 50)
        made.connection().dataReceived(OK)
        assert result(asked).status == 200
        assert len(made.endpoint.connections) == 1

    def test_nothing_is_begun_after_the_end(self) -> None:
        """A pool that was stopped makes no connection."""
        made = Made()
        made.pool.stop()
        with pytest.raises(ConnectionFailed, match="storaged stops"):
            result(made.ask())
        assert made.endpoint.connections == []

    def test_a_connection_that_is_made_while_the_pool_stops(self) -> None:
        """A connection that is established after the pool was stopped is aborted."""
        made, connected = Made(), Deferred[None]()
        connect = made.endpoint.connect
        made.endpoint.connect = lambda factory: connected.addCallback(lambda _: connect(factory))  # type: ignore
        asked = made.ask()
        made.pool.stop()
        connected.callback(None)
        assert made.connection().transport.aborted
        with pytest.raises(ConnectionFailed, match="storaged stops"):
            result(asked)

    def test_a_connection_whose_request_has_not_left_is_not_used_again(self) -> None:
        """A connection is closed if its response came before the whole request was sent."""
        made = Made()
        asked = made.ask()
        made.clock.advance(0)
        transport = made.connection().transport
        transport.dataBuffer, transport._tempDataBuffer = b"rest", []
        made.connection().dataReceived(OK.replace(b"200 OK", b"412 No"))
        assert result(asked).status == 412
        assert transport.disconnecting
        assert made.pool._idle == []

    def test_stopping_closes_everything(self) -> None:
        """Stopping the pool aborts all connections, idle or not."""
        made = Made()
        asked = made.ask()
        made.pool.stop()
        assert made.connection().transport.aborted
        made.connection().connectionLost(Failure(ConnectionDone()))
        with pytest.raises(ConnectionFailed):
            result(asked)
        made.clock.advance(0)
        assert made.clock.getDelayedCalls() == []


class BodyStreamTests:
    """The body of a response that is delivered to a consumer."""

    @pytest.mark.parametrize("early", [b"", b"01234"])
    def test_all_bytes_arrive(self, early: bytes) -> None:
        """All bytes are delivered, those that came with the head included, and the connection is free then."""
        made = Made()
        stream, consumer = made.stream(early), Consumer()
        done = stream.deliver(consumer, lambda: CHUNK)
        made.connection().dataReceived(b"0123456789"[len(early) :])
        result(done)
        assert (consumer.data, consumer.producer) == (b"0123456789", None)
        made.ask()
        assert len(made.endpoint.connections) == 1

    def test_the_socket_is_not_read_before_somebody_wants_it(self) -> None:
        """The socket is not read before delivery begins, nor while the consumer is full."""
        made = Made()
        stream, consumer = made.stream(), Consumer()
        transport = made.connection().transport
        assert transport.producerState == "paused"
        stream.deliver(consumer, lambda: CHUNK)
        assert transport.producerState == "producing"
        consumer.producer.pauseProducing()
        assert transport.producerState == "paused"
        consumer.producer.resumeProducing()
        assert transport.producerState == "producing"

    def test_ends_when_the_last_bytes_have_left(self) -> None:
        """Delivery ends when a full consumer has sent the last bytes."""
        made = Made()
        stream, consumer = made.stream(), Consumer(paused=True)
        done = stream.deliver(consumer, lambda: CHUNK)
        made.connection().dataReceived(b"0123456789")
        assert not done.called
        consumer.producer.resumeProducing()
        result(done)

    def test_a_connection_that_closes_after_the_last_byte_took_nothing_along(self) -> None:
        """A connection that is lost after the last byte does not fail a delivery whose consumer is still full."""
        made = Made()
        stream, consumer = made.stream(), Consumer(paused=True)
        delivered = stream.deliver(consumer, lambda: CHUNK)
        made.connection().dataReceived(b"0123456789")
        made.connection().connectionLost(Failure(ConnectionDone()))
        consumer.producer.resumeProducing()
        result(delivered)
        assert consumer.data == b"0123456789"
        asked = made.ask()
        made.connection().dataReceived(OK)
        assert result(asked).status == 200
        assert len(made.endpoint.connections) == 2

    def test_the_next_answer_is_read_though_the_consumer_is_full(self) -> None:
        """The next response is read although a consumer that took the last bytes from the socket is full."""
        made, consumer = Made(), SpliceConsumer()
        with connected() as (transport, s3):
            transport.setTcpNoDelay = lambda _: None
            made.endpoint.make = lambda: transport

            def take(source: socket, count: int) -> int:
                consumer.producer.pauseProducing()
                return len(source.recv(count))

            consumer.take = take
            asked = made.open()
            transport.protocol = made.connection()
            s3.send(LARGE)
            transport.doRead()
            _, stream = result(asked)
            done = stream.deliver(consumer, lambda: CHUNK)
            s3.send(b"0123456789")
            transport.doRead()
            assert not done.called
            assert transport in transport.reactor.getReaders()
            consumer.producer.resumeProducing()
            result(done)

    def test_reads_as_much_as_it_is_told(self) -> None:
        """Each read is limited to the budget at that time and to the rest of the body."""
        made = Made()
        sizes = [5, 4, 100]
        made.stream().deliver(Consumer(), lambda: sizes.pop(0))
        transport = made.connection().transport
        assert transport.bufferSize == 5
        made.connection().dataReceived(b"x")
        assert transport.bufferSize == 4
        made.connection().dataReceived(b"12")
        assert transport.bufferSize == 7  # more will not come
        sizes.append(1)
        made.connection().dataReceived(b"3456789")
        assert transport.bufferSize == READ_SIZE

    def test_a_body_that_breaks_off_fails(self) -> None:
        """A body that breaks off fails, whether or not its delivery had begun."""
        made = Made()
        stream, consumer = made.stream(b"012"), Consumer()
        done = stream.deliver(consumer, lambda: CHUNK)
        made.connection().connectionLost(Failure(ConnectionDone()))
        with pytest.raises(ConnectionFailed):
            result(done)
        assert consumer.data == b"012"
        stream = made.stream(b"012")
        made.connection().connectionLost(Failure(ConnectionDone()))
        with pytest.raises(ConnectionFailed):
            result(stream.deliver(Consumer(), lambda: CHUNK))

    def test_a_consumer_that_leaves(self) -> None:
        """A consumer that stops the delivery ends the connection."""
        made = Made()
        stream, consumer = made.stream(b"012"), Consumer()
        done = stream.deliver(consumer, lambda: CHUNK)
        consumer.producer.stopProducing()
        with pytest.raises(ConsumerGone):
            result(done)
        assert made.connection().transport.aborted

    def test_closing_without_reading(self) -> None:
        """Closing a body that was not delivered ends the connection."""
        made = Made()
        made.stream(b"012").close()
        assert made.connection().transport.aborted

    def test_a_body_that_came_with_its_head_is_not_streamed(self) -> None:
        """A body that came with its head is in the response, and the connection is free."""
        made = Made()
        asked = made.open()
        again = asked.addCallback(lambda opened: (*opened, made.ask()))
        made.connection().dataReceived(LARGE + b"0123456789")
        response, body, _ = result(again)
        assert (response.body, body) == (b"0123456789", None)
        assert len(made.endpoint.connections) == 1

    def test_an_error_is_not_streamed(self) -> None:
        """The body of an error is read into memory."""
        made = Made()
        asked = made.open()
        made.connection().dataReceived(b"HTTP/1.1 404 Not Found\r\nContent-Length: 20\r\n\r\n<Code>NoSuch")
        assert not asked.called
        made.connection().dataReceived(b"Key</Cod")
        response, body = result(asked)
        assert (response.status, body) == (404, None)

    def test_an_error_without_end_is_given_up(self) -> None:
        """The body of an error is given up when it gets too large."""
        made = Made()
        waiting = made.open()
        connection = made.connection()
        connection.dataReceived(b"HTTP/1.1 500 X\r\nContent-Length: 999999999999\r\n\r\n")
        for _ in range((MAX_COLLECTED >> 20) + 1):
            assert not connection.transport.aborted
            connection.dataReceived(bytes(1 << 20))
        assert connection.transport.aborted
        with pytest.raises(ConnectionFailed, match="more than"):
            result(waiting)
