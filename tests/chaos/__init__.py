"""Clients among faults of all kinds: nothing is lost, nothing hangs, nothing stays behind.

``python -m tests.chaos`` runs several stations at once. Each has an embedded broker behind a `FaultProxy`, a second
broker that shares its nodes, a client that sends, one that receives, and a plan of faults drawn from the seed. What is
final by default (a 403, no subprotocol, a second 401, an address that is gone) is so at the strict stations, which
expect the end and make a new client; at the patient ones `retries` has everything tried again.

* `plan`: what goes wrong, drawn from a seed. `sabotage`: how it is done.
* `ledger`: what became of every message, at the sender, at the broker and at the receiver.
* `senders`, `receivers`: the traffic. `station`: all of it together.

Each of the other programs breaks one thing, again and again:

* `roll_over`: moving every two seconds costs no message and hardly any time.
* `outbox_kill`: a sending process, killed while it stores.
"""
