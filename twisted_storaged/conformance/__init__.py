"""Checks of the wire contract from outside, against any server: `python -m twisted_storaged.conformance URL`.

A module of checks covers one topic; `__main__` lists these modules. Each public function in them that takes a Server is
a check: its docstring is its name in the table, it returns what it saw, and it raises Violation where the server breaks
the contract. The checks know nothing of how storaged is made. Sockets block: the kit is a process of its own.
"""
