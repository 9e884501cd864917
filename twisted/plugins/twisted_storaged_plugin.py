"""What makes `twistd storaged` known. No __init__.py in this folder or above: they belong to Twisted."""

from twisted.application.service import ServiceMaker

storaged = ServiceMaker(
    "storaged",
    "twisted_storaged.tap",
    "Stores and serves objects for the services of a host.",
    "storaged",
)
