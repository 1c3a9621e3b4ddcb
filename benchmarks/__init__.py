"""Benchmarks: against other clients on real brokers (``python -m benchmarks``), and without sockets (``.offline``)."""
