"""Scenarios against real brokers and foreign clients: `pytest --interop tests/interop`, or `nox -s interop`."""
