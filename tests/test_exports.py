"""The public surface is an artefact of its own: listed, grouped, documented, typed."""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import amqpws_async
from amqpws_async import options

SOURCE = Path(amqpws_async.__file__)
TREE = ast.parse(SOURCE.read_text(encoding="utf-8"))
NAMES = amqpws_async.__all__
CLASSES = [name for name in NAMES if inspect.isclass(getattr(amqpws_async, name))]
OURS = [name for name in CLASSES if getattr(amqpws_async, name).__module__.startswith("amqpws_async.")]


def _groups() -> dict[str, list[str]]:
    """Module -> the names that the package takes from it."""
    return {
        node.module: [alias.name for alias in node.names]
        for node in TREE.body
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
    }


def _sorted_as_constants_classes_functions(names: list[str]) -> list[str]:
    """The order that ruff keeps `__all__` in: SCREAMING_CASE, CamelCase, the rest; numbers by their value."""

    def key(name: str) -> tuple[int, list[tuple[int, str]]]:
        kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
        return kind, [(int(number or 0), text) for number, text in re.findall(r"(\d+)|(\D+)", name)]

    return sorted(names, key=key)


# --- the list --------------------------------------------------------------------------------------


def test_all_is_what_the_groups_import() -> None:
    """`__all__` has every name that the package imports, and no other."""
    assert sorted(NAMES) == sorted(name for names in _groups().values() for name in names)


def test_names_are_unique_and_sorted() -> None:
    """So that a change of the surface is one line of a diff."""
    assert len(set(NAMES)) == len(NAMES)
    assert _sorted_as_constants_classes_functions(NAMES) == NAMES


@pytest.mark.parametrize("module", _groups())
def test_a_group_is_part_of_its_modules_all(module: str) -> None:
    """What the package shows, the module calls public too, and it is the same object."""
    found = importlib.import_module(f"amqpws_async.{module}")
    for name in _groups()[module]:
        assert name in found.__all__, name
        assert getattr(found, name) is getattr(amqpws_async, name)


def test_each_group_is_headed_by_the_name_of_its_module() -> None:
    """`__init__.py` reads as a map: a comment names the module above its imports."""
    lines = SOURCE.read_text(encoding="utf-8").splitlines()
    for node in TREE.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            heading = lines[node.lineno - 2]
            assert re.match(rf"# {node.module}(:|$)", heading), f"line {node.lineno}: {heading!r}"


def test_the_module_map_names_every_module() -> None:
    """`help(amqpws_async)` shows all rooms."""
    assert amqpws_async.__doc__ is not None
    rooms = {path.stem for path in SOURCE.parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    named = set(re.findall(r"`(\w+)`", amqpws_async.__doc__.partition("layer order:")[2]))
    assert {room for room in rooms if not room.startswith("_")} <= named


@pytest.mark.parametrize(
    "path", sorted(SOURCE.parent.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE.parent))
)
def test_each_module_says_what_it_is_and_what_is_public(path: Path) -> None:
    """A docstring first; `__all__` names things that exist, once each."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if path.name == "__main__.py":
        return
    parts = path.relative_to(SOURCE.parent.parent).with_suffix("").parts
    module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    public = getattr(module, "__all__", None)
    if public is not None:
        assert len(set(public)) == len(public)
        assert [name for name in public if not hasattr(module, name)] == []


# --- what help() and an editor show ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_documented(name: str) -> None:
    """Classes and functions by a docstring of their own, a type alias or a constant beside its assignment."""
    value = getattr(amqpws_async, name)
    if inspect.isclass(value):
        # dataclass() makes "Name(field: type)" of a missing docstring; an inherited one says nothing of the class.
        doc = vars(value).get("__doc__")
        assert doc
        assert not doc.startswith(f"{name}(")
    elif inspect.isfunction(value):
        assert value.__doc__
    else:
        assert _documented_beside_its_assignment(name)


def _documented_beside_its_assignment(name: str) -> bool:
    """Whether a `#:` comment or a `#` one stands above the assignment; names of proton count as documented there."""
    module = next(module for module, names in _groups().items() if name in names)
    package = SOURCE.parent / module
    paths = package.rglob("*.py") if package.is_dir() else [package.with_suffix(".py")]
    for path in paths:
        source = path.read_text(encoding="utf-8")
        if re.search(rf"^from proton import \([^)]*\b{name}\b", source, re.MULTILINE):
            return True
        if re.search(rf'^#:? .+\n{name}\b.*=|^{name}\b.*=.*\n(    .*\n|[)\]]\n)*"""', source, re.MULTILINE):
            return True
    return False


def _public_members(kind: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties of our own making, inherited ones under the name of the class that has them."""
    seen: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("amqpws_async."):
            continue
        for name, member in vars(base).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            if isinstance(member, classmethod | staticmethod):
                member = member.__func__
            if isinstance(member, types.FunctionType | property):
                yield f"{base.__name__}.{name}", member


def _functions() -> dict[str, Any]:
    found = {name: value for name in NAMES if inspect.isfunction(value := getattr(amqpws_async, name))}
    for name in OURS:
        found.update(_public_members(getattr(amqpws_async, name)))
    return found


FUNCTIONS = _functions()


def test_there_are_functions_to_look_at() -> None:
    """Guards the tests below against looking at nothing."""
    assert {"connect", "Sender.send", "Receiver.receive", "Delivery.accept", "Endpoint.state"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_method_has_a_docstring(name: str) -> None:
    """Also the inherited ones and the properties."""
    assert FUNCTIONS[name].__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_method_is_annotated_in_full(name: str) -> None:
    """Each argument and the return value has a type that is not Any by omission."""
    function = FUNCTIONS[name]
    if isinstance(function, property):
        assert function.fget is not None
        function = function.fget
    signature = inspect.signature(function)
    missing = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls") and parameter.annotation is inspect.Parameter.empty
    ]
    assert missing == []
    assert signature.return_annotation is not inspect.Signature.empty


# They say so once, for all five, in accept(); a token provider's method is the user's to write.
_REFERRING = {"Delivery.reject", "Delivery.release", "Delivery.modify", "Delivery.received", "StaticToken.token"}
_REFERRING |= {"TokenProvider.token"}
COROUTINES = sorted(name for name, member in FUNCTIONS.items() if inspect.iscoroutinefunction(member))


@pytest.mark.parametrize("name", [name for name in COROUTINES if name not in _REFERRING])
def test_every_coroutine_says_what_cancelling_does(name: str) -> None:
    """Or that it never waits, or which other method it is like."""
    assert re.search(r"[Cc]ancelling|does not wait|never waits|[Oo]therwise as `close`", FUNCTIONS[name].__doc__)


@pytest.mark.parametrize("name", [name for name in OURS if dataclasses.is_dataclass(getattr(amqpws_async, name))])
def test_every_field_of_a_dataclass_is_explained(name: str) -> None:
    """Below "Attributes:", or by a docstring right after the field."""
    kind = getattr(amqpws_async, name)
    described = set()
    for origin in kind.__mro__[:-1]:
        doc = inspect.cleandoc(origin.__doc__ or "")
        described |= set(re.findall(r"^    (\w+):", doc.partition("Attributes:")[2], re.MULTILINE))
        described |= set(re.findall(r'^    (\w+): .*\n    """', inspect.getsource(origin), re.MULTILINE))
    public = {item.name for item in dataclasses.fields(kind) if not item.name.startswith("_")}
    assert public - described == set()


@pytest.mark.parametrize("name", [name for name in OURS if issubclass(getattr(amqpws_async, name), BaseException)])
def test_every_exception_is_in_the_tree_of_the_errors_module(name: str) -> None:
    """The drawing at the top of errors.py leaves none out."""
    assert amqpws_async.errors.__doc__ is not None
    assert re.search(rf"\b{name}\b", amqpws_async.errors.__doc__)


@pytest.mark.parametrize("name", [name for name in OURS if issubclass(getattr(amqpws_async, name), enum.Enum)])
def test_the_members_of_an_enumeration_are_the_specifications_words(name: str) -> None:
    """FIRST is "first": the member's name is its value in capitals."""
    for member in getattr(amqpws_async, name):
        assert member.name == member.value.replace("-", "_").upper()


# --- options and their twins --------------------------------------------------------------------------

OPTIONS = sorted(name for name in options.__all__ if name.endswith("Options"))


def test_each_options_class_has_a_twin() -> None:
    """`connect(**options: Unpack[ConnectionArguments])` and its like know every argument."""
    assert OPTIONS
    assert sorted(options.__all__) == sorted(OPTIONS + [name.replace("Options", "Arguments") for name in OPTIONS])


@pytest.mark.parametrize("name", OPTIONS)
def test_options_and_arguments_agree(name: str) -> None:
    """The same names in the same order with the same types; all keyword-only, all beside the URL with a default."""
    kind, twin = getattr(options, name), getattr(options, name.replace("Options", "Arguments"))
    given = [item for item in dataclasses.fields(kind) if item.init and item.name != "url"]
    types_of_kind, types_of_twin = typing.get_type_hints(kind), typing.get_type_hints(twin)
    assert [item.name for item in given] == list(types_of_twin)
    assert {item.name: types_of_kind[item.name] for item in given} == types_of_twin
    assert not twin.__required_keys__
    for item in given:
        assert item.kw_only, item.name
        assert item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING, item.name
