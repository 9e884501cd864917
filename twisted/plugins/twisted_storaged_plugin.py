"""Registers `twistd storaged`. This folder and its parent must not have an __init__.py: they are Twisted's packages."""

from twisted.application.service import ServiceMaker

storaged = ServiceMaker(
    "storaged",
    "twisted_storaged.tap",
    "Stores and serves objects for the services of a host.",
    "storaged",
)
