"""The package for a long time: ``python -m tests.soak [--tenth]``.

Three parts, each in a process of its own, whose peer is in yet another one, so that what is measured is the client's:
`churn` opens and closes, `messages` sends and receives, `slow` receives large messages more slowly than they come.
"""
