"""What is done to a transport in more than one place."""

from __future__ import annotations

from typing import Any


def flush(transport: Any) -> None:
    """Send now what was just written, instead of in the reactor's next round, which costs as much as the sending.

    What the socket does not take stays with the transport, as ever; so does noticing that the peer is gone. A
    transport that is closing is left alone: it would not be told that its last bytes have left.
    """
    send = getattr(transport, "doWrite", None)
    if send is not None and transport.connected and not transport.disconnecting:
        send()
