"""Bad input, in bulk: ``python -m tests.fuzz [--short] [--seed N] [--count N]``.

Two parts. `engine` feeds mutated recordings of real conversations to the engine in both roles, in processes of their
own, since a bug in proton's C code would take the whole process along. `conversations` lets odd WebSocket servers loose
on `amqpws_async.connect`. Whatever is found lands in ``crashes/``, from where ``tests/test_fuzz_corpus.py`` replays it
for ever after.
"""
