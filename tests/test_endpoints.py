"""What `bind` means, and who can reach it."""

from __future__ import annotations

import pytest

from twisted_storaged.endpoints import DEFAULT_BIND, endpoint_description, is_local


class EndpointDescriptionTests:
    """From what an operator writes to what Twisted reads."""

    @pytest.mark.parametrize(
        ("bind", "description"),
        [
            ("127.0.0.1:3211", "tcp:3211:interface=127.0.0.1"),
            ("localhost:80", "tcp:80:interface=localhost"),
            ("[::1]:3211", r"tcp6:3211:interface=\:\:1"),
            (":3211", "tcp:3211"),
            ("tcp:3211", "tcp:3211"),
            ("tcp:3211:interface=127.0.0.1", "tcp:3211:interface=127.0.0.1"),
            ("unix:/run/storaged.sock", "unix:/run/storaged.sock"),
            ("ssl:443:privateKey=k.pem:interface=127.0.0.1", "ssl:443:privateKey=k.pem:interface=127.0.0.1"),
        ],
    )
    def test_host_and_port_or_a_description(self, bind: str, description: str) -> None:
        """Both ways of saying it lead to a description."""
        assert endpoint_description(bind) == description


class IsLocalTests:
    """Without authentication, only this host may reach the daemon."""

    @pytest.mark.parametrize(
        "description",
        [
            DEFAULT_BIND,
            "tcp:1:127.0.0.1",
            "tcp:1:interface=127.8.9.1",
            "tcp:interface=localhost:port=1",
            r"tcp6:1:interface=\:\:1",
            "unix:/x",
            "unix:address=/x:mode=600",
            "ssl:1:privateKey=a:interface=127.0.0.1",
        ],
    )
    def test_loopback_and_unix_sockets(self, description: str) -> None:
        """These cannot be reached from elsewhere."""
        assert is_local(description)

    @pytest.mark.parametrize(
        "description",
        [
            "tcp:1",
            "tcp:1:interface=0.0.0.0",
            "tcp:1:interface=10.0.0.1",
            "tcp:1:interface=example.org",
            "tcp:1:interface=",
            "tcp6:1",
            "ssl:1:privateKey=127.0.0.1",
            "systemd:domain=INET:index=0",
            "nonsense",
        ],
    )
    def test_all_else_might_be(self, description: str) -> None:
        """Also what cannot be known."""
        assert not is_local(description)
