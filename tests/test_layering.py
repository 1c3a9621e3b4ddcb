"""Imports go one way, and what a rule keeps in one module stays there: read from the source, not from what runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import amqpws_async

ROOT = Path(amqpws_async.__file__).parent

# What each module may import of ours, in layer order: a set names only modules above it. The name of a package stands
# for all that is in it, and inside a package its modules may import each other, though not in circles.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "signals": set(),
    "codec": {"errors"},
    "outcomes": {"errors"},
    "sections": {"codec", "errors"},
    "fields": {"codec", "errors", "sections"},
    "shapes": {"codec", "fields", "sections"},
    "message": {"codec", "errors", "fields", "outcomes", "sections", "shapes"},
    "terminus": {"codec", "errors"},
    "urls": {"errors"},
    "auth": {"errors", "urls"},
    "options": {"auth", "errors", "terminus", "urls"},
    "tunnel": {"errors", "urls"},
    "masking": set(),
    "handshake": {"errors", "masking", "options", "urls"},
    "frames": set(),
    "transport": {"errors", "frames", "handshake", "masking", "options", "tunnel", "urls"},
    "engine": {"auth.sasl", "codec", "errors", "outcomes", "terminus"},
    "endpoint": {"errors"},
    "link": {"endpoint", "engine", "errors", "terminus"},
    "processing": {"endpoint", "errors", "outcomes", "signals"},
    "sender": {"endpoint", "engine", "errors", "link", "message", "outcomes", "terminus"},
    "receiver": {"endpoint", "engine", "errors", "link", "message", "outcomes", "processing", "terminus"},
    "session": {"endpoint", "engine", "errors", "options", "receiver", "sender", "terminus"},
    "runner": {"endpoint", "engine", "errors"},
    "connection": {"auth", "endpoint", "errors", "link", "options", "runner", "session", "transport"},
    "client": {
        *("auth", "connection", "endpoint", "errors", "link", "message", "options", "outcomes", "processing"),
        *("receiver", "sender", "session", "terminus"),
    },
}

# Beside the layers. A double must not share the code that it is there to test.
SIDES: dict[str, set[str]] = {
    "testing": {"auth", "codec", "engine", "errors", "masking", "message", "options", "outcomes", "terminus", "urls"},
    "eventmesh": {*LAYERS, ""},
    "cli": {*LAYERS, "eventmesh", "testing", ""},  # "" is the public surface
}

ALLOWED = LAYERS | SIDES

# A fixture opens the client for its user; the double itself stays away from it.
ALSO_ALLOWED = {"testing.pytest_plugin": {""}}


class Import(NamedTuple):
    """One name that a module imports."""

    module: str  # dotted, without our package's own name: "engine.core"
    target: str  # the same for ours, else as written: "asyncio"
    ours: bool
    typing_only: bool  # below `if TYPE_CHECKING:`
    line: int

    @property
    def at(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


MODULES = _modules()


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _walk(node: ast.AST, typing_only: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    yield node, typing_only
    guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in ast.iter_child_nodes(node):
        below = guarded and isinstance(node, ast.If) and child in node.body
        yield from _walk(child, typing_only or below)


@cache
def _imports(module: str) -> list[Import]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for node, typing_only in _walk(_tree(module)):
        for target, ours in _targets(node, package):
            found.append(Import(module, target, ours, typing_only, node.lineno))  # type: ignore[attr-defined]
    return found


def _targets(node: ast.AST, package: str) -> Iterator[tuple[str, bool]]:
    own = amqpws_async.__name__
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        start = node.module or ""
        if node.level:
            above = package.split(".") if package else []
            above = above[: len(above) - node.level + 1]
            start = ".".join([own, *above, *([node.module] if node.module else [])])
        # `from package import module` names a module, `from module import name` does not.
        names = []
        for alias in node.names:
            inner = f"{start}.{alias.name}".removeprefix(f"{own}.")
            names.append(f"{start}.{alias.name}" if inner in MODULES else start)
    else:
        return
    for name in dict.fromkeys(names):
        ours = name == own or name.startswith(f"{own}.")
        yield name.removeprefix(own).removeprefix(".") if ours else name, ours


def all_imports() -> list[Import]:
    """Every import of every module."""
    return [item for module in MODULES for item in _imports(module)]


def room(module: str) -> str:
    """The module or package right below ours that a dotted name is in."""
    return module.partition(".")[0]


def _within(module: str, allowed: set[str]) -> bool:
    """Whether `module`, or a package that it is in, is one of `allowed`."""
    parts = module.split(".")
    return any(".".join(parts[:count]) in allowed for count in range(1, len(parts) + 1))


INNER = [name for name in MODULES if name not in ("", "__main__")]


# --- the layers ----------------------------------------------------------------------------------


def test_the_table_has_every_module_and_no_other() -> None:
    """A new module is given its place on purpose."""
    assert {room(name) for name in INNER} == set(ALLOWED)


def test_the_table_is_in_layer_order() -> None:
    """Each module imports from above alone, so there can be no circle."""
    seen = {""}
    for name, allowed in ALLOWED.items():
        assert {room(item) for item in allowed} <= seen, name
        seen.add(name)


@pytest.mark.parametrize("module", INNER)
def test_a_module_imports_only_from_its_own_and_the_lower_layers(module: str) -> None:
    """What runs never imports upwards, nor anything beside what its row says."""
    wrong = [
        item.at
        for item in _imports(module)
        if item.ours
        and not item.typing_only
        and room(item.target) != room(module)
        and not _within(item.target, ALLOWED[room(module)])
        and item.target not in ALSO_ALLOWED.get(module, ())
    ]
    assert wrong == []


def test_modules_of_one_package_import_each_other_in_no_circle() -> None:
    """Also inside engine, auth, testing and cli there is an order."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for item in all_imports():
        own_package = item.target == item.module.rpartition(".")[0]
        if item.ours and not item.typing_only and not own_package:
            sorter.add(item.module, item.target)
    sorter.prepare()  # raises CycleError, which names the circle


def test_not_even_a_type_comes_from_the_sides_or_from_the_public_surface() -> None:
    """For its annotations a child may name its parent; what is in the layers never names testing or cli."""
    wrong = [
        item.at
        for item in all_imports()
        if item.ours and room(item.module) in LAYERS and (room(item.target) in SIDES or not item.target)
    ]
    assert wrong == []


def test_engine_and_transport_never_import_each_other() -> None:
    """They are siblings, not even their types meet: only the runner has both."""
    network = {"transport", "frames", "handshake", "tunnel"}
    wrong = [
        item.at
        for item in all_imports()
        if item.ours
        if (room(item.module) == "engine" and room(item.target) in network)
        or (room(item.module) in network and room(item.target) == "engine")
    ]
    assert wrong == []


# --- what a rule keeps in one place --------------------------------------------------------------


def test_the_engine_is_synchronous_and_knows_no_asyncio() -> None:
    """No import of asyncio and nothing to await below engine/."""
    modules = [name for name in MODULES if room(name) == "engine"]
    assert modules
    for module in modules:
        imported = {item.target.partition(".")[0] for item in _imports(module) if not item.ours}
        assert not imported & {"asyncio", "concurrent", "selectors", "socket"}, module
        waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
        assert [node.lineno for node in ast.walk(_tree(module)) if isinstance(node, waiting)] == [], module


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("cproton", {"engine"}),
        ("cproton_ffi", {"engine"}),
        ("proton", {"codec", "engine", "testing"}),
        ("websockets.asyncio.client", {"transport"}),
        ("websockets.client", set[str]()),
        ("websockets.sync", set[str]()),
        ("websockets.legacy", set[str]()),
        ("websockets", {"transport", "frames", "handshake", "masking", "testing"}),
        ("aiohttp", {"auth.http", "auth.oauth2", "eventmesh.management", "testing"}),
    ],
)
def test_a_library_stays_behind_the_module_that_wraps_it(library: str, homes: set[str]) -> None:
    """Knowledge of proton's raw layer, and of each network library, is in one place."""
    wrong = [
        item.at
        for item in all_imports()
        if not item.ours and f"{item.target}.".startswith(f"{library}.") and not _within(item.module, homes)
    ]
    assert wrong == []


TASK_OWNERS = {"runner", "processing", "client.client", "client.outbox", "auth.oauth2", "testing", "cli"}


def _attributes(module: str) -> Iterator[tuple[str, int]]:
    """Every name that is read or called as an attribute or imported by name, with its line."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.name, node.lineno


@pytest.mark.parametrize("name", ["create_task", "ensure_future", "TaskGroup", "gather", "as_completed"])
def test_only_those_who_own_tasks_make_them(name: str) -> None:
    """The runner is a connection's one task; the others that own tasks are few, and named here."""
    wrong = [
        f"{module}:{line}"
        for module in INNER
        if not _within(module, TASK_OWNERS)
        for found, line in _attributes(module)
        if found == name
    ]
    assert wrong == []


@pytest.mark.parametrize("name", ["wait_for", "to_thread", "run_in_executor", "Thread", "ThreadPoolExecutor"])
def test_no_thread_and_no_wait_for_on_the_message_path(name: str) -> None:
    """`wait_for` wraps what it waits for in a task before Python 3.12; threads are not needed at all."""
    wrong = [
        f"{module}:{line}"
        for module in INNER
        if room(module) in LAYERS and room(module) != "auth"  # it reads certificates and signs, once per token
        if module != "client.outbox.disk"  # the one thread of a file, for those who ask for one
        for found, line in _attributes(module)
        if found == name
    ]
    assert wrong == []


def _swallows(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        text = ast.unparse(node)
        return "suppress" in ast.unparse(node.func) and ("CancelledError" in text or "BaseException" in text)
    if isinstance(node, ast.ExceptHandler):
        caught = "BaseException" if node.type is None else ast.unparse(node.type)
        last = node.body[-1]
        raised = isinstance(last, ast.Raise) and last.exc is None
        return not raised and ("CancelledError" in caught or "BaseException" in caught)
    return False


def test_a_cancellation_is_never_swallowed() -> None:
    """A coroutine that catches CancelledError or BaseException raises it on, and none suppresses it."""
    wrong = {
        f"{module}:{node.lineno}"  # type: ignore[attr-defined]
        for module in INNER
        for function in ast.walk(_tree(module))
        if isinstance(function, ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if _swallows(node)
    }
    assert wrong == set()


# --- what an import costs ------------------------------------------------------------------------


def test_importing_the_package_loads_neither_the_sides_nor_an_http_client() -> None:
    """`import amqpws_async` is for production: no aiohttp, no embedded broker, no command."""
    program = "import sys, amqpws_async; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert "amqpws_async.connection" in loaded
    sides = tuple(f"amqpws_async.{name}" for name in ("testing", "cli", "eventmesh"))
    heavy = ("aiohttp", "pytest", "uvloop", "websockets.asyncio.server", "websockets.server", *sides)
    assert [name for name in loaded if any(f"{name}.".startswith(f"{other}.") for other in heavy)] == []
    assert run.stderr == ""
