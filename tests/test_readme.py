"""The README is held to the code: its programs run, its tables and names are compared with what they describe."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import amqpws_async as amqp
from amqpws_async.testing import Broker, EventMesh
from benchmarks.measuring import Run
from benchmarks.results import aimed, rows

from .test_layering import INNER, all_imports, room

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

TESTS = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest -n auto"
DEMO = "python3 -m venv .venv && .venv/bin/pip install '.[testing]' && .venv/bin/amqpws demo --event-mesh"


def _section(title: str) -> str:
    """The text below a heading, up to the next of its kind."""
    match = re.search(rf"^(##+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", README, re.MULTILINE | re.DOTALL)
    assert match, f"no section {title!r}"
    return match[2]


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _tables(text: str) -> list[list[list[str]]]:
    """Tables as rows of cells, the heading first and the rule below it left out."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    tables = [[re.split(r" *\| *", line.strip("|").strip()) for line in table.splitlines()] for table in found]
    return [[table[0], *table[2:]] for table in tables]


def _spans(text: str) -> list[str]:
    """What stands in backticks, code blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


PYTHON = _blocks(README, "python")
SCRIPTS = [block for block in PYTHON if "asyncio.run(" in block]
TEST_FILES = [block for block in PYTHON if "def test_" in block]
SNIPPETS = [block for block in PYTHON if block not in SCRIPTS and block not in TEST_FILES]


def _against(broker: Broker, text: str) -> str:
    return re.sub(r"wss?://[\w.:/-]+", broker.url, text)


# --- the first screen --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [TESTS, DEMO])
def test_the_two_commands_stand_on_lines_of_their_own(command: str) -> None:
    """A fresh machine needs one line for each, and they are copied from here."""
    assert [command in block.splitlines() for block in _blocks(README, "sh")].count(True) == 1
    assert README.splitlines().index(command) < 40


def test_the_first_example_is_short_and_the_one_in_examples() -> None:
    """Eighteen lines, imports and call included, and the same program as examples/hello.py."""
    program = ast.parse(SCRIPTS[0])
    hello = ast.parse((ROOT / "examples" / "hello.py").read_text(encoding="utf-8"))
    main, same = (
        next(ast.dump(node) for node in tree.body if isinstance(node, ast.AsyncFunctionDef))
        for tree in (program, hello)
    )
    assert main == same
    assert len([line for line in SCRIPTS[0].splitlines() if line.strip()]) <= 18


# --- every program runs --------------------------------------------------------------------------------


def test_each_kind_of_program_is_there() -> None:
    """Guards the tests below against running nothing."""
    assert len(SCRIPTS) == 3
    assert len(TEST_FILES) == 1
    assert len(SNIPPETS) >= 5


@pytest.mark.parametrize(("number", "printed"), [(0, "b'hello'\nb'world'\n"), (1, "application/json b'{\"id\": 1}'\n")])
async def test_a_script_runs_as_it_stands(number: int, printed: str) -> None:
    """In a process of its own, warnings as errors; the URL is the embedded broker's."""
    tokens = []

    def authorize(headers: Any, path: str) -> None:
        tokens.append(headers.get("Authorization"))

    async with Broker(authorize=authorize) as broker:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", _against(broker, SCRIPTS[number])),
            env={**os.environ, "PYTHONPATH": str(ROOT), "TOKEN": "an-access-token"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
    assert errors.decode() == ""
    assert output.decode() == printed
    assert tokens == ([] if number == 0 else ["Bearer an-access-token"])


async def test_event_mesh_takes_less_than_fifteen_lines(tmp_path: Path) -> None:
    """From a key to a message that came back: as it stands, in a folder with the key, TLS and tokens included."""
    script = SCRIPTS[2]
    assert len([line for line in script.splitlines() if line.strip()]) < 15
    async with EventMesh() as mesh:
        mesh.create_queue("${namespace}/orders")
        mesh.subscribe("${namespace}/orders", "${namespace}/orders/*")
        key, authority = await asyncio.to_thread(mesh.write_key, tmp_path)
        assert authority is not None
        await asyncio.to_thread(key.rename, tmp_path / "key.json")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", script),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SSL_CERT_FILE": str(authority)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
    assert errors.decode() == ""
    assert output.decode() == "b'{\"id\": 1}'\n"


async def test_the_snippets_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the order of the text, with a connection, a sender and a receiver that are open."""
    monkeypatch.setenv("TOKEN", "an-access-token")
    monkeypatch.chdir(tmp_path)
    async with (
        EventMesh(tls=False) as mesh,
        Broker() as broker,
        amqp.connect(broker.url) as connection,
        connection.sender("orders") as sender,
        connection.receiver("orders") as receiver,
    ):
        key, _ = await asyncio.to_thread(mesh.write_key, tmp_path)
        monkeypatch.setenv("EVENT_MESH_KEY", str(key))
        names = {
            "amqp": amqp,
            "asyncio": asyncio,
            "os": os,
            "connection": connection,
            "sender": sender,
            "receiver": receiver,
        }
        for number, snippet in enumerate(SNIPPETS):
            code = compile(
                _against(broker, snippet), f"README snippet {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            )
            running = eval(code, names)
            if inspect.iscoroutine(running):
                await running
        assert mesh.queues == {"example/shop/1/orders": {"example/shop/1/ce/orders/*"}}
        assert mesh.broker.statistics().queues["example/shop/1/orders"].depth == 1


async def test_the_tests_for_a_service_pass() -> None:
    """What the README offers for copying is a test file that passes."""
    for block in TEST_FILES:
        names: dict[str, Any] = {}
        exec(block, names)
        tests = [value for name, value in names.items() if name.startswith("test_")]
        assert len(tests) == 3
        for test in tests:
            await test()


# --- tables ----------------------------------------------------------------------------------------------

OPTIONS = {
    "`connect()`": amqp.ConnectionOptions,
    "`receiver()`": amqp.ReceiverOptions,
    "`Client()`": amqp.ClientOptions,
    "`Backoff()`": amqp.Backoff,
}


@pytest.mark.parametrize("heading", OPTIONS)
def test_the_defaults_are_those_of_the_code(heading: str) -> None:
    """Each row's default is the field's; each field with a number or a rule for its default has a row."""
    table = next(table for table in _tables(_section("Limits and defaults")) if table[0][0] == heading)
    written = {name.strip("`"): ast.literal_eval(default.strip("`")) for name, default, _ in table[1:]}
    actual = {
        item.name: item.default
        for item in dataclasses.fields(OPTIONS[heading])
        if item.init and (isinstance(item.default, int | float) or (isinstance(item.default, tuple) and item.default))
    }
    assert written == actual


def test_the_default_of_send_many_is_that_of_the_code() -> None:
    """The one default that is an argument's and not an option's."""
    default = inspect.signature(amqp.Sender.send_many).parameters["in_flight"].default
    assert f"`send_many()` keeps {default} messages in flight" in _section("Limits and defaults")


METHODS = {
    name for kind in (amqp.Connection, amqp.Session, amqp.Sender, amqp.Receiver, amqp.Delivery) for name in dir(kind)
}


def test_the_guarantees_speak_of_methods_and_errors_that_exist() -> None:
    """Each call in the first column is one, each error in the others is public or a builtin."""
    (table,) = _tables(_section("Delivery guarantees"))
    calls = [span for row in table[1:] for span in _spans(row[0]) if span.endswith("()")]
    assert {"send()", "transfer()", "send_many()", "receive()", "accept()", "close()", "connect()"} <= set(calls)
    for call in calls:
        assert call in ("connect()", "anext()") or call.removesuffix("()") in METHODS, call
    for row in table[1:]:
        for span in _spans(" ".join(row)):
            if re.fullmatch(r"[A-Z]\w+", span):
                assert hasattr(amqp, span) or span == "TimeoutError", span


def test_the_errors_are_those_of_the_code() -> None:
    """Every public exception is in the section, and every one in the section is public."""
    public = {
        name
        for name in amqp.__all__
        if inspect.isclass(kind := getattr(amqp, name)) and issubclass(kind, BaseException)
    }
    named = {span for span in _spans(_section("Errors")) if re.fullmatch(r"[A-Z]\w+", span)}
    assert named - public == {"StopReason", "TimeoutError", "ValueError", "TypeError"}
    assert public - named == set()


def test_a_row_of_errors_is_a_branch_of_the_tree() -> None:
    """`A`: `B`, `C` says that B and C are kinds of A."""
    (table,) = _tables(_section("Errors"))
    for row in table[1:]:
        parent, colon, _ = row[1].partition(":")
        if colon:
            first, *others = [getattr(amqp, span) for span in _spans(row[1]) if hasattr(amqp, span)]
            assert parent == f"`{first.__name__}`"
            assert all(issubclass(other, first) for other in others)


def test_the_states_are_those_of_the_code() -> None:
    """The life of an endpoint has the four states, and no other."""
    table = _tables(_section("Life of an endpoint"))[0]
    named = {span for row in table[1:] for span in _spans(" ".join(row))}
    assert named == {state.name for state in amqp.EndpointState}


def test_the_table_of_speeds_is_what_was_measured() -> None:
    """Each figure is the median that the benchmarks kept, and so are those in the text below."""
    runs = [Run(**run) for run in json.loads((ROOT / "benchmarks" / "results.json").read_text())["runs"]]
    section = _section("Speed")
    table = _tables(section)[0]
    works = ("send-100b", "receive-100b", "send-1k", "receive-1k")
    for line, work in zip(table[1:], works, strict=True):
        medians = {row.contender.split()[0]: row.median for row in reversed(rows(work, runs))}
        peers = ("ours", "floor", "go-amqp", "rhea", "jms", "pyamqp", "reactor")
        assert line[1:] == [f"{medians[peer]:.{1 if medians[peer] < 20 else 0}f}" for peer in peers]
    latency = {row.contender: row.median for row in rows("latency", runs)}
    connecting = {row.contender: row.median for row in rows("connect", runs)}
    said = section.partition("One awaited send")[2].partition("\n## ")[0]
    assert [float(number) for number in re.findall(r"\d+(?:\.\d+)?", said)] == [
        round(latency["ours asyncio"]),
        round(latency["go-amqp"]),
        round(latency["websockets asyncio"]),
        round(connecting["ours"] / 1000, 1),
        round(connecting["go-amqp"] / 1000, 1),
    ]


def test_the_aims_that_are_missed_are_named() -> None:
    """With what was reached; those that are kept are not among them."""
    runs = [Run(**run) for run in json.loads((ROOT / "benchmarks" / "results.json").read_text())["runs"]]
    missed = [
        [f"`{aim.workload}`: {aim.contender} / {aim.other}", f"{ratio:.3f}", f"{aim.most:.3f}"]
        for aim, ratio in aimed(runs)
        if ratio > aim.most
    ]
    section = (ROOT / "benchmarks" / "README.md").read_text().partition("## Aims that are missed\n")[2]
    assert _tables(section)[0][1:] == missed


# --- names -------------------------------------------------------------------------------------------------


def test_dotted_names_exist() -> None:
    """`amqp.Something` and `amqpws_async.something` in the prose lead somewhere."""
    for span in _spans(README):
        for dotted in re.findall(r"\bamqp(?:ws_async)?(?:\.\w+)+", span):
            if dotted == "amqpws_async.trace":
                continue  # a logger
            names = dotted.split(".")[1:]
            value: Any = amqp
            for name in names:
                if inspect.ismodule(value) and not hasattr(value, name):
                    importlib.import_module(f"{value.__name__}.{name}")
                value = getattr(value, name)


def test_links_and_files_exist() -> None:
    """Every relative link, and every path in backticks, is in the repository; every anchor is a heading."""
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert (ROOT / target).exists(), target
    for span in _spans(README):
        if re.fullmatch(r"[\w/]+/(\w+\.py)?", span):
            assert any((place / span).exists() for place in (ROOT, ROOT / "amqpws_async")), span


def test_every_example_is_linked() -> None:
    """None is left to be found by chance."""
    for path in (ROOT / "examples").glob("*.py"):
        assert f"(examples/{path.name})" in README


# --- the drawing ---------------------------------------------------------------------------------------------


def _drawing() -> dict[str, int]:
    """Module -> its line in the drawing of the modules."""
    rooms = {room(name) for name in INNER}
    places: dict[str, int] = {}
    (drawing,) = _blocks(_section("Modules"), "")
    for number, line in enumerate(drawing.splitlines()):
        for cell in line.split("│"):
            for word in re.split(r" {2,}", cell.strip()):
                if word in rooms:
                    assert word not in places, word
                    places[word] = number
    return places


def test_the_drawing_shows_every_module_and_imports_point_down_in_it() -> None:
    """Whoever imports stands above what it imports."""
    places = _drawing()
    assert set(places) == {room(name) for name in INNER}
    wrong = [
        item.at
        for item in all_imports()
        if item.ours and item.target and not item.typing_only and room(item.module) in places
        if room(item.module) != room(item.target) and places[room(item.module)] >= places[room(item.target)]
    ]
    assert wrong == []


# --- the command -----------------------------------------------------------------------------------------------

COMMANDS = [shlex.split(line) for block in _blocks(_section("The command"), "sh") for line in block.splitlines()]


@cache
def _help(*command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "amqpws_async", *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("line", COMMANDS, ids=" ".join)
def test_a_command_line_is_one_that_help_knows(line: list[str]) -> None:
    """The command is listed, and so is each of its options."""
    assert line[0] == "amqpws"
    assert re.search(rf"^ +{line[1]} ", _help(), re.MULTILINE)
    for word in line[2:]:
        if word.startswith("-"):
            assert re.search(rf"^ +{word}\b", _help(line[1]), re.MULTILINE), word


def test_options_in_the_prose_are_known() -> None:
    """Those in backticks, such as `--token-env NAME`."""
    options = [span for span in _spans(_section("The command")) if span.startswith("--")]
    assert options
    for option in options:
        assert re.search(rf"^ +{option}\b", _help("send"), re.MULTILINE), option


async def _amqpws(*words: str, folder: Path) -> str:
    """Run the command, and give what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "amqpws_async", *words),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, (words, errors.decode(), output.decode())
    return output.decode()


CLIENTS = ("send", "receive", "doctor")


async def test_the_lines_for_a_broker_work() -> None:
    """In the order of the text, against one broker."""
    async with Broker() as broker:
        for line in COMMANDS:
            if line[1] in CLIENTS and "--service-key" not in line:
                printed = await _amqpws(*(_against(broker, word) for word in line[1:]), folder=ROOT)
                assert line[1] != "receive" or "hello" in printed
        assert broker.statistics().queues["orders"].acknowledged == 10


async def test_the_lines_for_event_mesh_work(tmp_path: Path) -> None:
    """With the key and the CA that `amqpws broker --event-mesh` writes, in the same folder."""
    (broker,) = (line[1:] for line in COMMANDS if "--event-mesh" in line and line[1] == "broker")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "amqpws_async", *broker, "--port", "0"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        for _ in range(3):
            await process.stdout.readline()  # the URL and both files: it listens
        printed = [
            await _amqpws(*line[1:], folder=tmp_path)
            for line in COMMANDS
            if line[1] in CLIENTS and "--service-key" in line
        ]
    finally:
        process.terminate()
        await process.communicate()
    assert '{"id": 1}' in printed[-1]
    assert process.returncode == 0
