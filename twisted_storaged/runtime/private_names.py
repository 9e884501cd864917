"""The names of other projects that storaged relies on although no documentation promises them.

An update may rename or redefine them without notice. `tests/runtime/test_private_names.py` checks each against the
class of the installed version, and that no private name is in use that is not listed here. What a class documents, or
an interface requires, is not listed.
"""

from __future__ import annotations

from collections.abc import Mapping

#: By module, or module and class: the names, and what each is used for.
PRIVATE_NAMES: Mapping[str, Mapping[str, str]] = {
    "twisted.internet.epollreactor:EPollReactor": {
        "_doReadOrWrite": "called for each ready descriptor; calls its doRead or doWrite and disconnects it on errors",
        "_poller": "the epoll object, polled by our own `doPoll`",
        "_selectables": "the transport of each descriptor that epoll reports",
        "doIteration": "overridden, as the reactor's main loop calls it and not `doPoll`",
        "doPoll": "overridden, to call `_doReadOrWrite` without a log context",
        "seconds": "overridden by the monotonic clock; `callLater` and its timers go by it",
    },
    "twisted.internet.tcp:Connection": {
        "TLS": "whether TLS was started on this transport, so that its socket must not be used directly",
        "_tempDataBuffer": "written pieces that have not been joined to `dataBuffer`: whether, and how much, is unsent",
        "bufferSize": "set, to limit how many bytes one `recv` returns",
        "connected": "whether the socket is open",
        "dataBuffer": "bytes that are being sent: whether, and how much, is unsent",
        "disconnecting": "whether the connection is to be closed when all is sent, so that nothing more may follow",
        "doRead": "replaced on an instance while we read from its socket; the reactor looks it up for each event",
        "doWrite": "replaced on an instance while we send to its socket; the reactor looks it up for each event",
        "offset": "how many bytes of `dataBuffer` have been sent",
    },
    "twisted.protocols.tls:TLSMemoryBIOProtocol": {
        "transport": "the plain transport beneath TLS, whose unsent bytes are counted",
    },
    "twisted.web.http:HTTPChannel": {
        "_buffer": "received bytes that are not parsed yet: whether another request may have begun",
        "_command": "the method of the request; set when we have parsed its head ourselves",
        "_dataBuffer": "bytes that were received while a request was handled, and are parsed after it",
        "_handlingRequest": "whether a request is complete and not yet answered",
        "_optimisticEagerReadSize": "how many bytes of later requests are read while one is handled",
        "_path": "the target of the request; set when we have parsed its head ourselves",
        "_receivedHeaderCount": "how many header fields the request has, to refuse one too many with status 431",
        "_receivedHeaderSize": "how many bytes its head has, to refuse one too long with status 414 or 431",
        "_requestProducer": "the producer of the response body, if there is one",
        "_respondToBadRequestAndDisconnect": "overridden, to refuse malformed requests as all others are refused",
        "_version": "the version of the request; set when we have parsed its head ourselves",
        "_waitingForTransport": "whether the transport has paused us as it has enough to send",
        "allContentReceived": "overridden and called, at the end of a request body",
        "allHeadersReceived": "overridden, to dispatch a request at the end of its head",
        "callLater": "set on each instance by its factory: the site's clock",
        "dataReceived": "replaced on an instance when what the client still sends is to be discarded",
        "length": "bytes of the request body; None for a chunked one; 0 between requests",
        "line_mode": "whether a head, and not a body, is to be received next",
        "paused": "set, to keep received bytes from being parsed",
        "persistent": "whether another request may follow; set to False to close after the response",
        "requests": "the requests that are not yet answered, oldest first",
    },
    "twisted.web.http:Request": {
        "chunked": "set, so that `finish` ends a chunked response",
        "client": "the address of the client, for the access log",
        "clientproto": "the version of the request; set when it is dispatched",
        "code": "the status; set when the response begins",
        "finished": "whether `finish` was called",
        "handleContentChunk": "overridden: the channel passes each piece of the body to it",
        "producer": "the producer of the response body; reset when the connection is lost",
        "requestReceived": "overridden: the channel calls it when the body is complete",
        "sentLength": "bytes of the response body; counted by us, for the access log",
        "startedWriting": "set when the response begins, so that `finish` writes no head",
    },
    "botocore.credentials:RefreshableCredentials": {
        "refresh_needed": "whether to get the credentials in a thread; looked up, as other credentials do not have it",
    },
    "botocore.httpsession": {
        "where": "the file of the certificates that boto3 trusts",
    },
}
