"""Starts and stops the real brokers and foreign peers, each on free ports of the loopback interface, in its own folder.

Every `start_...` function takes an empty folder for the broker's files, returns once the broker says in its log that it
is ready, and raises `StartError` with the end of that log otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.interop import fetch

READY_TIMEOUT = 60.0  # seconds; Artemis takes 3 and Broker-J 5 on two idle cores
STOP_TIMEOUT = 20.0
IDLE_TIMEOUT = 5.0  # seconds of silence after which a peer gives us up, where it can be told
ONE_ATTEMPT = "one-attempt-"
"""How the address of a queue begins that gives a message up when it is rejected once."""
NAMESPACE = "example/shop/1"
"""That of the queues and topics of Artemis that stand for Event Mesh's."""
SUBSCRIPTIONS = {f"{NAMESPACE}/{queue}": f"{NAMESPACE}/{queue}/created" for queue in ("secret", "x509", "events")}
"""Queues of Artemis, and the topic that each is subscribed to."""
USER = "alice"
PASSWORD = secrets.token_urlsafe(12)
CREDENTIALS = {"PEER_USER": USER, "PEER_PASSWORD": PASSWORD}
# Ends a process and its group when we are gone, however we went: our end of the pipe on its standard input closes then.
LEASH = 'exec 3<&0; (cat <&3; kill -KILL 0) & exec "$@" 3<&- </dev/null'
HERE = Path(__file__).parent


class StartError(Exception):
    """A broker ended or stayed silent instead of getting ready."""


class Server:
    """A process that serves: started, waited for, stopped, killed or restarted; its output goes to a file.

    Args:
        command: The program and its arguments.
        folder: Where it runs and where its log is written.
        ready: A regular expression for the line of its output that says that it serves.
        environment: What to add to the environment.
    """

    def __init__(self, command: list[str], *, folder: Path, ready: str, environment: Mapping[str, str] | None = None):
        self.log = folder / "output.log"
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._ready = re.compile(ready)
        self._start()

    def _start(self) -> None:
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", LEASH, "leash", *self._command],
                cwd=self.log.parent,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.ready = self._wait_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_ready(self) -> re.Match[str]:
        deadline = time.monotonic() + READY_TIMEOUT
        while True:
            running = self._process.poll() is None
            output = self.log.read_text(errors="replace")
            if match := self._ready.search(output):
                return match
            if not running:
                raise StartError(f"{self._process.args!r} ended with {self._process.returncode}:\n{output[-3000:]}")
            if time.monotonic() > deadline:
                raise StartError(f"{self._process.args!r} is not ready after {READY_TIMEOUT} s:\n{output[-3000:]}")
            time.sleep(0.05)

    def freeze(self) -> None:
        """Stops the process where it is, as a broken network would: its sockets stay, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def stop(self) -> None:
        """Ends the process and what it started in order, or by force where it does not obey within `STOP_TIMEOUT`."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT)
        self.kill()

    def kill(self) -> None:
        """Ends the process and what it started at once, as a crash would: no AMQP close, no WebSocket close."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def restart(self) -> None:
        """Ends the process as `kill` does and starts it again: the same command in the same folder, with a new log."""
        self.kill()
        self._start()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A running peer that holds queues."""

    name: str
    server: Server
    url: str
    """Takes anonymous connections."""
    login_url: str
    """Takes `USER` with `PASSWORD` by SASL PLAIN, and refuses another password."""
    scratch: Path
    """A folder for what a test puts before the peer, such as a gateway."""


def start_artemis(folder: Path) -> Peer:
    """Starts Apache Artemis: every address is a queue, made on first use, and `SUBSCRIPTIONS` are there.

    The prefixes `queue:` and `topic:` say what an address is, as Event Mesh's do.
    """
    instance, port = folder / "instance", free_port()
    subprocess.run(
        [
            str(fetch.artemis() / "bin" / "artemis"),
            "create",
            "--silent",
            f"--user={USER}",
            f"--password={PASSWORD}",
            "--allow-anonymous",
            "--no-web",
            "--no-autotune",
            "--host=127.0.0.1",
            f"--default-port={port}",
            "--no-amqp-acceptor",
            "--no-hornetq-acceptor",
            "--no-mqtt-acceptor",
            "--no-stomp-acceptor",
            str(instance),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=READY_TIMEOUT,
    )
    setting = '<address-setting match="#">'
    queues = "<default-{0}-routing-type>ANYCAST</default-{0}-routing-type>"
    _edit(
        instance / "etc" / "broker.xml",
        # Multicast is the default: what is sent before a receiver exists would be dropped.
        (setting, setting + queues.format("queue") + queues.format("address")),
        (
            "protocols=CORE,AMQP",
            f"amqpIdleTimeout={IDLE_TIMEOUT * 1000:.0f};anycastPrefix=queue:;multicastPrefix=topic:;"
            "protocols=CORE,AMQP",
        ),
        ("<addresses>", "<addresses>" + "".join(map(_queue_and_topic, SUBSCRIPTIONS, SUBSCRIPTIONS.values()))),
        ("</core>", f"<diverts>{''.join(map(_divert, SUBSCRIPTIONS, SUBSCRIPTIONS.values()))}</diverts></core>"),
    )
    # A wrong password must be refused, and not be taken for a guest's.
    _edit(
        instance / "etc" / "login.config",
        ("GuestLoginModule sufficient", "GuestLoginModule sufficient\n       credentialsInvalidate=true"),
    )
    server = Server([str(instance / "bin" / "artemis"), "run"], folder=folder, ready="AMQ221007")
    url = f"ws://127.0.0.1:{port}"
    return Peer(name="artemis", server=server, url=url, login_url=url, scratch=folder)


def start_broker_j(folder: Path) -> Peer:
    """Starts Apache Qpid Broker-J: every address is a queue, made on first use. It advertises no idle timeout."""
    port, login_port = free_port(), free_port()
    aliases = [{"name": kind, "type": f"{kind}Alias"} for kind in ("default", "name", "hostname")]
    # Broker-J takes a rejection for a failed attempt, after the last of which the message goes to the alternate.
    attempts = {f"{ONE_ATTEMPT}.*": 1, ".*": 0}
    policies = [
        {
            "pattern": pattern,
            "createdOnPublish": True,
            "createdOnConsume": True,
            "nodeType": "queue",
            "attributes": {
                "alternateBinding": {"destination": "dead-letters"},
                "maximumDeliveryAttempts": maximum,
            },
        }
        for pattern, maximum in attempts.items()
    ]
    host = {
        "type": "DERBY",  # in memory it would refuse durable messages
        "storePath": str(folder / "store"),
        "nodeAutoCreationPolicies": policies,
        "queues": [{"name": "dead-letters", "type": "standard"}],
    }
    configuration = {
        "name": "interop",
        "modelVersion": "9.0",
        "authenticationproviders": [
            {"name": "anonymous", "type": "Anonymous"},
            {
                "name": "plain",
                "type": "Plain",
                "secureOnlyMechanisms": "[]",
                "users": [{"name": USER, "type": "managed", "password": PASSWORD}],
            },
        ],
        "ports": [
            {
                "name": provider,
                "type": "AMQP",
                "port": str(number),
                "bindingAddress": "127.0.0.1",
                "protocols": ["AMQP_1_0"],
                "transports": ["WS"],
                "authenticationProvider": provider,
                "virtualhostaliases": aliases,
            }
            for provider, number in (("anonymous", port), ("plain", login_port))
        ],
        "virtualhostnodes": [
            {
                "name": "default",
                "type": "JSON",  # in memory it would forget its queues, and their messages with them
                "storePath": str(folder / "nodes"),
                "defaultVirtualHostNode": "true",
                "virtualHostInitialConfiguration": json.dumps(host),
            }
        ],
    }
    (folder / "config.json").write_text(json.dumps(configuration))
    server = Server(
        [str(fetch.broker_j() / "bin" / "qpid-server"), "-icp", str(folder / "config.json")],
        folder=folder,
        ready="BRK-1004",
        environment={"QPID_WORK": str(folder / "work")},
    )
    return Peer(
        name="broker-j",
        server=server,
        url=f"ws://127.0.0.1:{port}",
        login_url=f"ws://127.0.0.1:{login_port}",
        scratch=folder,
    )


def start_embedded(folder: Path) -> Peer:
    """Starts the embedded broker in a process of its own."""
    server = Server(
        [sys.executable, "-m", "tests.interop.embedded_peer"],
        folder=folder,
        ready=r"anonymous (\S+) login (\S+)\n",
        environment={"PYTHONPATH": str(HERE.parent.parent), **CREDENTIALS},
    )
    url, login_url = server.ready.groups()
    return Peer(name="embedded", server=server, url=url, login_url=login_url, scratch=folder)


def start_rhea(folder: Path) -> Peer:
    """Starts a server made of rhea and ws, which keeps what it gets in arrays."""
    server = Server(
        [fetch.tool("node", "Node.js"), str(HERE / "rhea_peer.js"), "serve"],
        folder=folder,
        ready=r"listening on (\d+)\n",
        environment={"NODE_PATH": str(fetch.node_modules()), **CREDENTIALS},
    )
    url = f"ws://127.0.0.1:{server.ready[1]}"
    return Peer(name="rhea", server=server, url=url, login_url=url, scratch=folder)


PEERS: Mapping[str, Callable[[Path], Peer]] = {
    "artemis": start_artemis,
    "broker-j": start_broker_j,
    "embedded": start_embedded,
    "rhea": start_rhea,
}


def _queue_and_topic(queue: str, topic: str) -> str:
    return (
        f'<address name="{queue}"><anycast><queue name="{queue}"/></anycast></address>'
        f'<address name="{topic}"><multicast/></address>'
    )


def _divert(queue: str, topic: str) -> str:
    name = queue.replace("/", "-")  # an XML name
    return (
        f'<divert name="{name}"><address>{topic}</address><forwarding-address>{queue}</forwarding-address>'
        "<routing-type>ANYCAST</routing-type></divert>"
    )


def _edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        if old not in text:
            raise StartError(f"{path.name} has no {old!r} to change")
        text = text.replace(old, new)
    path.write_text(text)


def free_port() -> int:
    """Returns a port of the loopback interface that nobody listens on."""
    # Another process may take the port before the broker does: then the broker says so, and StartError shows it.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
