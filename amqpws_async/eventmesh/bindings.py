"""Where a service key comes from: a file, a text, or what the platform gives to a program that is bound to a service.

Cloud Foundry lists all bindings in ``VCAP_SERVICES``, or in the file that ``VCAP_SERVICES_FILE_PATH`` names. Kubernetes
mounts each of them as a folder of files: below ``SERVICE_BINDING_ROOT`` (servicebinding.io), or in the older layout
``/etc/secrets/sapcp/<service>/<instance>``. SAP's operator adds a file ``.metadata`` that says which of the files are
credentials and which of them are JSON; without it the content decides.

Nothing here looks into the credentials further than to see whether they are Event Mesh's; that is the business of
`key`. Errors say which file or variable is at fault, and never what is in it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import OpenError

__all__ = [
    "MOUNT",
    "SUITE_LABEL",
    "Binding",
    "ServiceKeyError",
    "find_binding",
    "parse_json",
    "plain",
    "read_file",
    "shown_path",
    "unwrap",
]

SUITE_LABEL: Final = "event-mesh-message-client"
"""The service's label where Event Mesh is a part of Integration Suite."""

LABELS: Final = ("enterprise-messaging", SUITE_LABEL)
"""The labels that Event Mesh has in the service catalogue."""

MOUNT: Final = Path("/etc/secrets/sapcp")
"""The root of the older layout."""

_MAX_FILE: Final = 1024 * 1024
"""Bytes of a file that are read at most: a key has some 10 KiB, and a hundred bindings have less than this. A mistaken
path may lead to a file of any size."""

_MAX_SHOWN: Final = 255
"""Characters of a path that an error shows: a longer one may be a text given in place of a path."""


class ServiceKeyError(OpenError, ValueError):
    """A service key cannot be found, chosen or used. The text says where, why, and what to do; never a value of it."""


@dataclass(frozen=True, slots=True, repr=False)
class Binding:
    """Credentials as they were found.

    Attributes:
        credentials: The service key.
        origin: Where it was found, and why this one: for logs and errors.
        label: The service's label or type in lower case, if known.
    """

    credentials: Mapping[str, Any]
    origin: str
    label: str | None = None

    def __repr__(self) -> str:
        return f"Binding({self.origin!r}, label={self.label!r})"


def plain(name: object) -> str:
    """A field's name as it is compared: ``credential-type``, ``credentialType`` and ``credential_type`` are one."""
    return str(name).strip().lower().replace("-", "").replace("_", "")


def unwrap(found: Mapping[str, Any], where: str, name: str | None = None) -> Binding:
    """Take the credentials out of what people have at hand.

    Args:
        found: A service key; a binding with it in ``credentials``; or all bindings, as in ``VCAP_SERVICES``, which may
            itself be the one field (as in a ``default-env.json``).
        where: Where it was found.
        name: Which binding to take.

    Raises:
        ServiceKeyError: None or several of the bindings fit, or there is nothing to choose from by name.
    """
    services = found.get("VCAP_SERVICES", found)
    if isinstance(services, str):
        services = parse_json(services, f"{where}: VCAP_SERVICES")
    if "VCAP_SERVICES" in found or _lists_bindings(services):
        binding, looked = _choose(list(_vcap_candidates(services, where)), name, where)
        if binding is None:
            raise ServiceKeyError(f"no binding of Event Mesh found: {looked}")
        return binding
    if name is not None:
        raise ServiceKeyError(f"{where}: this is one service key, there is no binding to choose: leave binding= out")
    credentials = found.get("credentials")
    if isinstance(credentials, Mapping):
        return Binding(credentials, where, (_text(found, "label") or "").lower() or None)
    return Binding(found, where)


def find_binding(name: str | None, environ: Mapping[str, str], mount: Path) -> Binding:
    """Search the environment. Reads files: not for the event loop.

    The places are searched in this order, and the first that has a binding of Event Mesh decides:
    ``VCAP_SERVICES_FILE_PATH``, ``VCAP_SERVICES``, ``SERVICE_BINDING_ROOT``, and `mount`.

    Args:
        name: Which binding to take; None for the only one of Event Mesh.
        environ: The environment's variables.
        mount: The root of the older layout of files.

    Raises:
        ServiceKeyError: There is none, there are several in one place, or one cannot be read.
    """
    looked = []
    for where, candidates in _places(environ, mount):
        if isinstance(candidates, str):
            looked.append(f"{where} {candidates}")
            continue
        binding, why_not = _choose(candidates, name, where)
        if binding is not None:
            return binding
        looked.append(why_not)
    wanted = "" if name is None else f" named {name!r}"
    raise ServiceKeyError(
        f"no binding of Event Mesh{wanted} found: {'; '.join(looked)}. Bind the service to this program, or give a "
        "service key: the path of its file, its JSON text or a mapping"
    )


# --- the choice ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class _Candidate:
    """A binding that was found, of whatever service.

    Attributes:
        names: What it can be called by; the first one is shown.
        label: The service's label or type in lower case, if known.
        credentials: What it has.
        ours: Why it is one of Event Mesh's, or "" if nothing says so.
        problem: Why it cannot be used, or "".
    """

    names: tuple[str, ...]
    label: str | None
    credentials: Mapping[str, Any]
    ours: str
    problem: str = ""


def _choose(candidates: list[_Candidate], name: str | None, where: str) -> tuple[Binding | None, str]:
    """The binding to take, or None and why there is none."""
    ours = [each for each in candidates if each.ours]
    if name is None:
        matches = ours
    else:
        matches = [each for each in ours if name in each.names] or [each for each in candidates if name in each.names]
    if not matches:
        return None, f"{where} {_why_not(candidates, name)}"
    if len(matches) > 1:
        raise ServiceKeyError(f"{where}: {len(matches)} bindings fit, {_which(matches)}")
    [found] = matches
    if name is None:
        origin = f"{where}: the only binding {found.ours}, {found.names[0]!r}"
    else:
        origin = f"{where}: the binding named {name!r}"
    if found.problem:
        raise ServiceKeyError(f"{origin}: {found.problem}")
    return Binding(found.credentials, origin, found.label), ""


def _why_not(candidates: list[_Candidate], name: str | None) -> str:
    if not candidates:
        return "has no bindings"
    if name is not None:
        return f"has {len(candidates)}, none with that name"
    provided = [each.names[0] for each in candidates if each.label == "user-provided"]
    hint = f" (user-provided ones are taken by name alone: binding={provided[0]!r}?)" if provided else ""
    return f"has {len(candidates)}, none labelled {' or '.join(LABELS)}{hint}"


def _which(matches: list[_Candidate]) -> str:
    """The names of several bindings, each of them one that no other has, and what to do."""
    names = []
    for candidate in matches:
        others = {name for each in matches if each is not candidate for name in each.names}
        names.append(next((name for name in candidate.names if name not in others), candidate.names[0]))
    listed = ", ".join(map(repr, names))
    if len(set(names)) < len(names):
        return f"{listed}, and by name they are the same: remove all but one, or give a service key"
    return f"{listed}: say which: binding={names[0]!r}"


def _places(environ: Mapping[str, str], mount: Path) -> Iterator[tuple[str, list[_Candidate] | str]]:
    """Each place, and what there is or why there is nothing; the later ones are not looked at before their turn."""
    if path := environ.get("VCAP_SERVICES_FILE_PATH"):
        where = f"VCAP_SERVICES_FILE_PATH ({shown_path(path)})"
        yield where, list(_vcap_candidates(parse_json(read_file(path, where), where), where))
    if text := environ.get("VCAP_SERVICES"):
        yield "VCAP_SERVICES", list(_vcap_candidates(parse_json(text, "VCAP_SERVICES"), "VCAP_SERVICES"))
    if not path and not text:
        yield "VCAP_SERVICES", "is not set"
    if root := environ.get("SERVICE_BINDING_ROOT"):
        where = f"SERVICE_BINDING_ROOT ({shown_path(root)})"
        yield where, [_mounted(folder) for folder in _folders(Path(root), where)]
    else:
        yield "SERVICE_BINDING_ROOT", "is not set"
    where = str(mount)
    services = _folders(mount, where)
    yield where, [_mounted(each, service.name) for service in services for each in _folders(service, where)]


# --- Cloud Foundry ---------------------------------------------------------------------------


def _lists_bindings(services: Any) -> bool:
    return isinstance(services, Mapping) and any(
        isinstance(entry, Mapping) and isinstance(entry.get("credentials"), Mapping)
        for entries in services.values()
        if isinstance(entries, list)
        for entry in entries
    )


def _vcap_candidates(services: Any, where: str) -> Iterator[_Candidate]:
    if not isinstance(services, Mapping):
        raise ServiceKeyError(f"{where}: not an object of labels and their bindings")
    for label, entries in services.items():
        for entry in entries if isinstance(entries, list) else ():
            if not isinstance(entry, Mapping):
                continue
            own = (_text(entry, "label") or str(label)).lower()
            names = tuple(filter(None, (_text(entry, each) for each in ("name", "instance_name", "binding_name"))))
            credentials = entry.get("credentials")
            usable = credentials if isinstance(credentials, Mapping) else None
            yield _Candidate(
                names or ("(no name)",),
                own,
                usable or {},
                f"labelled {own}" if own in LABELS else "",
                "" if usable is not None else "it has no credentials",
            )


# --- Kubernetes ------------------------------------------------------------------------------


def _folders(root: Path, where: str) -> list[Path]:
    """The folders in `root`; Kubernetes keeps its own, such as ``..data``, out of sight by a dot."""
    try:
        return sorted(each for each in root.iterdir() if not each.name.startswith(".") and each.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        reason = error.strerror
    raise ServiceKeyError(f"{where}: the folder cannot be read: {reason}")


def _mounted(folder: Path, service: str | None = None) -> _Candidate:
    """Read a binding that is mounted as a folder: a file for each field, or one for all of them.

    Args:
        folder: It.
        service: The service's label, where the layout says it.
    """
    texts, problem = _texts(folder)
    credentials: dict[str, Any] = {}
    try:
        credentials = _described(texts) if ".metadata" in texts else _undescribed(texts)
    except ServiceKeyError as error:
        problem = problem or str(error)
    about = credentials | texts  # in some of the operator's forms all of it is in one file
    label = (service or _text(about, "label") or _text(about, "type") or "").lower()
    ours = "with messaging in it" if _has_messaging(about) else ""
    if label in LABELS:
        ours = f"labelled {label}"
    names = (_text(about, each) for each in ("instance_name", "binding_name", "name"))
    return _Candidate((folder.name, *filter(None, names)), label or None, credentials, ours, problem)


def _texts(folder: Path) -> tuple[dict[str, str], str]:
    """The files' texts by their names, and what is wrong with the first that cannot be read, or ""."""
    try:
        # Links are followed: Kubernetes mounts each file as one, to swap all of them at once.
        paths = sorted(
            each for each in folder.iterdir() if (each.name == ".metadata" or each.name[0] != ".") and each.is_file()
        )
    except OSError as error:
        return {}, f"the folder cannot be read: {error.strerror}"
    texts: dict[str, str] = {}
    problem = ""
    for path in paths:
        try:
            texts[path.name] = read_file(path, f"the file {path.name!r}").rstrip("\r\n")
        except ServiceKeyError as error:
            texts[path.name] = ""
            problem = problem or str(error)
    return texts, problem


def _described(texts: Mapping[str, str]) -> dict[str, Any]:
    """Put the credentials together as SAP's ``.metadata`` says."""
    metadata = parse_json(texts[".metadata"], "the file '.metadata'")
    fields = metadata.get("credentialProperties") if isinstance(metadata, Mapping) else None
    if not isinstance(fields, list) or not all(isinstance(each, Mapping) for each in fields):
        raise ServiceKeyError("the file '.metadata': credentialProperties: not a list of objects")
    credentials: dict[str, Any] = {}
    for number, each in enumerate(fields):
        name = each.get("name")
        if not isinstance(name, str) or name not in texts:
            raise ServiceKeyError(f"the file '.metadata': credentialProperties[{number}].name: no file has that name")
        value = parse_json(texts[name], f"the file {name!r}") if each.get("format") == "json" else texts[name]
        if each.get("container") and isinstance(value, Mapping):
            credentials |= value
        else:
            credentials[name] = value
    return _brought_up(credentials)


def _undescribed(texts: Mapping[str, str]) -> dict[str, Any]:
    """Put the credentials together without ``.metadata``: what looks like JSON, and is, is taken as that."""
    credentials: dict[str, Any] = {}
    for name, text in texts.items():
        credentials[name] = text
        if text.lstrip()[:1] in ("{", "["):
            with contextlib.suppress(ServiceKeyError):
                credentials[name] = parse_json(text, name)
    return _brought_up(credentials)


def _brought_up(credentials: dict[str, Any]) -> dict[str, Any]:
    """The same with the fields of the service key at the top, if they are all in one of its values."""
    if not _has_messaging(credentials):
        for value in credentials.values():
            inner = value.get("credentials", value) if isinstance(value, Mapping) else None
            if isinstance(inner, Mapping) and _has_messaging(inner):
                return credentials | dict(value) | dict(inner)
    return credentials


def _has_messaging(fields: Mapping[str, Any]) -> bool:
    return any(plain(name) == "messaging" for name in fields)


# --- files and texts -------------------------------------------------------------------------


def read_file(path: str | Path, where: str) -> str:
    """Read a whole text file, in UTF-8 with or without a byte order mark. Not for the event loop.

    Args:
        path: Its path.
        where: What to call it in errors.

    Raises:
        ServiceKeyError: It cannot be read, is larger than 1 MiB, or is not UTF-8.
    """
    reason = "is no text in UTF-8"
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_FILE + 1)
        if len(content) <= _MAX_FILE:
            return content.decode("utf-8-sig")
        reason = "is larger than 1 MiB, so it is no service key"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except ValueError as error:
        if not isinstance(error, UnicodeDecodeError):
            reason = "cannot be read: no path"  # there is a NUL in it
    # Not raised while one of these is handled: they have the content or what was given for a path, and would go along.
    raise ServiceKeyError(f"{where}: {reason}")


def parse_json(text: str, where: str) -> Any:
    """Parse JSON.

    Args:
        text: It.
        where: What to call it in errors.

    Raises:
        ServiceKeyError: It is none.
    """
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError):  # a number of thousands of digits, or lists in lists in lists
        reason = "it is beyond all measure"
    # Not raised while that error is handled: it has the whole text in it, and would go along.
    raise ServiceKeyError(f"{where}: is no valid JSON: {reason}")


def shown_path(path: str | Path) -> str:
    """A path for errors and logs; not a secret text that was mistaken for a path."""
    text = str(path)
    looks_like_one = len(text) <= _MAX_SHOWN and text.isprintable() and not set(text) & set('{}"')
    return text if looks_like_one else "(not shown: it does not look like a path)"


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value.strip() or None if isinstance(value, str) else None
