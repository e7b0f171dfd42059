"""Load tests: Locust sends the requests, this package says which, watches the server, and writes the report.

`python -m loadtest SCENARIO` (docs/load.md) is one process that watches and one or more processes of Locust, apart from
each other because Locust replaces Python's sockets and threads by gevent's.
"""
