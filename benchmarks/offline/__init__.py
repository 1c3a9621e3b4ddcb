"""The client without sockets, on recorded answers: a change is judged in seconds, or counted in instructions.

``python -m benchmarks.offline --help`` says how.
"""
