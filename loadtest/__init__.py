"""Load tests: Locust sends the requests and reports on them, this package says which, and watches the server.

`python -m loadtest SCENARIO` (docs/load.md) is one process that watches and one or more processes of Locust, apart from
each other because Locust replaces Python's sockets and threads by gevent's.
"""
