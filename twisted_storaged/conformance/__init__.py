"""The wire contract as checks from outside: `python -m twisted_storaged.conformance URL`, against any server of it.

A module of checks is about one subject. Each of its public functions is a check: it takes a Server, its docstring is
its name in the table, what it returns is what was seen, and it raises Unlike where that is not what the contract says.
Nothing in here knows how storaged is made; sockets block, as the kit is a process of its own.
"""
