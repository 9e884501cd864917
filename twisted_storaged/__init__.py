"""storaged: the one daemon of a host that stores and serves objects, over plain HTTP, in bounded memory."""

__version__ = "0.1.0"
