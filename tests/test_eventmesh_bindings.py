"""Where a service key is found: each layout of each platform, which one is chosen, and what is said if none can be."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from amqpws_async.eventmesh.bindings import Binding, find_binding
from amqpws_async.eventmesh.key import ServiceKey, ServiceKeyError

from .key_files import INTEGRATION_SUITE_KEYS, KEYS, load, said_by

CANARY = "canary-71be"
STANDARD, SUITE = "enterprise-messaging", "event-mesh-message-client"


def key(host: str = "broker", **more: Any) -> dict[str, Any]:
    """A service key for a host, with a canary for its secret."""
    return load("messaging-only", url=f"wss://{host}.example/protocols/amqp10ws", client_secret=CANARY) | more


def host_of(found: ServiceKey) -> str:
    """The host that `key` was called with."""
    return found.messaging.url.removeprefix("wss://").partition(".")[0]


def bound(name: str = "mesh", label: str = STANDARD, credentials: Any = None, **more: Any) -> dict[str, Any]:
    """An entry of VCAP_SERVICES."""
    found = credentials if credentials is not None else key(name)
    return {"name": name, "instance_name": name, "label": label, "credentials": found, **more}


def vcap(*entries: dict[str, Any]) -> str:
    """VCAP_SERVICES with these entries."""
    services: dict[str, list[Any]] = {}
    for entry in entries:
        services.setdefault(entry["label"], []).append(entry)
    return json.dumps(services)


class Environment:
    """Variables and folders for one test."""

    def __init__(self, tmp_path: Path) -> None:
        self.variables: dict[str, str] = {}
        self.root = tmp_path / "bindings"
        self.legacy = tmp_path / "sapcp"
        self.file = tmp_path / "vcap.json"

    def mount(self, name: str, files: Mapping[str, str], root: Path | None = None) -> Path:
        """Mounts a secret as Kubernetes does: each file is a link through the link ..data to a folder with a date."""
        folder = (root or self.root) / name
        data = folder / "..2026_11_22"
        data.mkdir(parents=True)
        (folder / "..data").symlink_to(data.name)
        for file, content in files.items():
            (data / file).write_text(content, "utf-8")
            (folder / file).symlink_to(f"..data/{file}")
        self.variables["SERVICE_BINDING_ROOT"] = str(self.root)
        return folder

    def load(self, binding: str | None = None) -> ServiceKey:
        """What is found."""
        return ServiceKey.from_environment(binding, environ=self.variables, mount=self.legacy)

    def refused(self, binding: str | None = None) -> str:
        """The text of the error that nothing can be taken with; there is no secret in it nor in what it carries."""
        with pytest.raises(ServiceKeyError) as caught:
            self.load(binding)
        assert CANARY not in said_by(caught.value)
        return str(caught.value)


@pytest.fixture
def here(tmp_path: Path) -> Environment:
    """An environment with nothing in it."""
    return Environment(tmp_path)


# --- nothing secret is shown -----------------------------------------------------------------


def test_a_binding_shows_no_secret() -> None:
    """The repr of what was found has where it was found, and no more."""
    found = find_binding(None, {"VCAP_SERVICES": vcap(bound())}, Path("/nowhere"))
    assert found.credentials == key("mesh")
    assert repr(found) == f"Binding({found.origin!r}, label='{STANDARD}')"
    assert CANARY not in repr(Binding({"a": CANARY}, "here"))


@pytest.mark.parametrize("text", [f'{{"x": "{CANARY}" 1}}', f'["{CANARY}"]', f'"{CANARY}"', f'{{"{CANARY}": "\\q"}}'])
@pytest.mark.parametrize("place", ["VCAP_SERVICES", "VCAP_SERVICES_FILE_PATH", "SERVICE_BINDING_ROOT"])
def test_what_is_broken_is_not_quoted(here: Environment, place: str, text: str) -> None:
    """JSON that is broken or of another kind is refused by its place; its text is in no error."""
    here.file.write_text(text, "utf-8")
    here.mount("mesh", {"messaging": text, ".metadata": text})
    here.variables = {place: {"VCAP_SERVICES": text, "SERVICE_BINDING_ROOT": str(here.root)}.get(place, str(here.file))}
    assert here.refused().startswith(place)


def test_the_log_shows_no_secret(here: Environment, caplog: pytest.LogCaptureFixture) -> None:
    """What is logged is where the key is from and why it was chosen: one line."""
    here.variables["VCAP_SERVICES"] = vcap(bound(), bound("login", "xsuaa", {"clientsecret": CANARY}))
    with caplog.at_level(logging.DEBUG):
        found = here.load()
    assert found.origin == f"VCAP_SERVICES: the only binding labelled {STANDARD}, 'mesh'"
    [record] = caplog.records
    assert (record.name, record.levelname) == ("amqpws_async.eventmesh", "INFO")
    assert record.getMessage() == f"= service key from {found.origin}"
    assert CANARY not in repr(vars(record))


def test_names_do_not_break_the_log(here: Environment, caplog: pytest.LogCaptureFixture) -> None:
    """A name with a line break in it does not begin a new line in the log or an error."""
    name = "mesh\nERROR: all is lost"
    here.variables["VCAP_SERVICES"] = vcap(bound(name, credentials=key()))
    with caplog.at_level(logging.INFO):
        here.load(name)
    assert "\n" not in caplog.records[0].getMessage()
    here.variables["VCAP_SERVICES"] = vcap(bound(name, credentials=key()), bound("b"))
    assert "\n" not in here.refused()


# --- files that cannot be read ---------------------------------------------------------------

UNREADABLE = [
    (b"x" * (1024 * 1024 + 1), "is larger than 1 MiB, so it is no service key"),
    (f"{CANARY}é".encode("latin-1"), "is no text in UTF-8"),
    (f"{CANARY}\0".encode("utf-16"), "is no text in UTF-8"),
    (None, "cannot be read: "),
]


@pytest.mark.parametrize(("content", "reason"), UNREADABLE)
def test_a_file_that_cannot_be_read(here: Environment, content: bytes | None, reason: str) -> None:
    """Files that are too large, not UTF-8 or not there are refused, and nothing of them is shown."""
    if content is not None:
        here.file.write_bytes(content)
    with pytest.raises(ServiceKeyError) as caught:
        ServiceKey.load(here.file)
    assert str(caught.value).startswith(f"the file {here.file}: {reason}")
    assert CANARY not in said_by(caught.value)
    here.variables["VCAP_SERVICES_FILE_PATH"] = str(here.file)
    here.variables["VCAP_SERVICES"] = vcap(bound())  # is not taken instead: that may be an older key
    assert here.refused().startswith(f"VCAP_SERVICES_FILE_PATH ({here.file}): {reason}")


@pytest.mark.parametrize(("content", "reason"), UNREADABLE[:3])
def test_a_mounted_file_that_cannot_be_read(here: Environment, content: bytes, reason: str) -> None:
    """Such a file is an error in the binding that is chosen, and none in that of another service."""
    folder = here.mount("mesh", {"messaging": "", "type": STANDARD})
    (folder / "messaging").write_bytes(content)
    (folder / "second").write_bytes(content)
    where = f"SERVICE_BINDING_ROOT ({here.root}): the only binding labelled {STANDARD}, 'mesh'"
    assert here.refused() == f"{where}: the file 'messaging': {reason}"
    (folder / "type").unlink()
    assert here.refused().endswith(f"the only binding with messaging in it, 'mesh': the file 'messaging': {reason}")
    (folder / "messaging").rename(folder / "keystore")
    here.mount("other", {"credentials": json.dumps(key())})
    assert "'other'" in here.load().origin


def test_a_folder_is_no_file(here: Environment, tmp_path: Path) -> None:
    """A folder in place of a file says so."""
    with pytest.raises(ServiceKeyError, match=rf"^the file {tmp_path}: cannot be read: Is a directory$"):
        ServiceKey.load(tmp_path)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Files are not read with a superuser's rights, as far as these are there."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_what_may_not_be_read(here: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders without the right to read them are named; those of other services do not matter."""
    folder = here.mount("mesh", {"namespace": "a/b/c", "messaging": CANARY})
    here.mount("other", {"x": "y"}).chmod(0o755)
    here.root.chmod(0o755)
    monkeypatch.chdir(here.root)  # the folders above may be closed to others
    here.variables["SERVICE_BINDING_ROOT"] = "."
    here.legacy = Path("none")
    (folder / "messaging").chmod(0)
    with nobody():
        assert here.refused().endswith("'mesh': the file 'messaging': cannot be read: Permission denied")
    folder.chmod(0)
    with nobody():
        assert here.refused("mesh").endswith("'mesh': the folder cannot be read: Permission denied")
        assert "none labelled" in here.refused()
    here.root.chmod(0)
    with nobody():
        assert here.refused() == "SERVICE_BINDING_ROOT (.): the folder cannot be read: Permission denied"
    here.root.chmod(0o755)
    folder.chmod(0o755)


# --- none, or several ------------------------------------------------------------------------


def test_nothing_is_there(here: Environment) -> None:
    """Without any binding the error says where was looked, and what can be done."""
    assert here.refused() == (
        "no binding of Event Mesh found: VCAP_SERVICES is not set; SERVICE_BINDING_ROOT is not set; "
        f"{here.legacy} has no bindings. Bind the service to this program, or give a service key: the path of its "
        "file, its JSON text or a mapping"
    )


def test_nothing_fits(here: Environment) -> None:
    """Bindings of other services are counted; user-provided ones, which only a name selects, are pointed out."""
    here.variables["VCAP_SERVICES"] = vcap(bound("a", "xsuaa"), bound("b", "user-provided"))
    here.mount("c", {"type": "xsuaa", "clientsecret": CANARY})
    error = here.refused()
    hint = "(user-provided ones are taken by name alone: binding='b'?)"
    assert f"VCAP_SERVICES has 2, none labelled {STANDARD} or {SUITE} {hint}; " in error
    assert f"SERVICE_BINDING_ROOT ({here.root}) has 1, none labelled {STANDARD} or {SUITE}; " in error
    error = here.refused("mesh")
    assert error.startswith("no binding of Event Mesh named 'mesh' found: VCAP_SERVICES has 2, none with that name; ")


@pytest.mark.parametrize("services", ["{}", '{"enterprise-messaging": []}', '{"enterprise-messaging": [null, 5]}'])
def test_no_services_are_bound(here: Environment, services: str) -> None:
    """An application without services has an empty VCAP_SERVICES."""
    here.variables["VCAP_SERVICES"] = services
    assert "VCAP_SERVICES has no bindings" in here.refused()
    here.variables["VCAP_SERVICES"] = '{"enterprise-messaging": 5}'
    assert "VCAP_SERVICES has no bindings" in here.refused()


def test_several_fit(here: Environment) -> None:
    """Of several the error lists the names, which may be given; it never takes the first."""
    here.variables["VCAP_SERVICES"] = vcap(bound("a"), bound("b", SUITE), bound("c", "user-provided"))
    assert here.refused() == "VCAP_SERVICES: 2 bindings fit, 'a', 'b': say which: binding='a'"
    for name in "abc":
        found = here.load(name)
        assert host_of(found) == name
        assert found.origin == f"VCAP_SERVICES: the binding named {name!r}"


def test_several_of_one_instance(here: Environment) -> None:
    """Bindings of one instance are told apart by the name that only one of them has."""
    one = bound("i", credentials=key("one"), binding_name="one")
    two = bound("i", credentials=key("two"), binding_name="two")
    here.variables["VCAP_SERVICES"] = vcap(one, two)
    assert here.refused() == "VCAP_SERVICES: 2 bindings fit, 'one', 'two': say which: binding='one'"
    assert here.refused("i") == here.refused()
    assert host_of(here.load("two")) == "two"
    here.variables["VCAP_SERVICES"] = vcap(bound("i"), bound("i"))
    assert here.refused("i").endswith(
        "'i', 'i', and by name they are the same: remove all but one, or give a service key"
    )


def test_several_are_mounted(here: Environment) -> None:
    """So it is for folders, which have the names of the folder and of the instance."""
    for name in "ab":
        here.mount(f"folder-{name}", {"credentials": json.dumps(key(name)), "instance_name": name})
    here.mount("other", {"type": "xsuaa"})
    error = here.refused()
    assert error.endswith("2 bindings fit, 'folder-a', 'folder-b': say which: binding='folder-a'")
    assert host_of(here.load("folder-b")) == "b"
    assert host_of(here.load("a")) == "a"


def test_ours_come_before_others_of_the_name(here: Environment) -> None:
    """A name that a binding of another service has too means the one of Event Mesh."""
    here.variables["VCAP_SERVICES"] = vcap(bound("mesh", "xsuaa", {"a": 1}), bound("mesh"))
    assert host_of(here.load("mesh")) == "mesh"
    here.variables["VCAP_SERVICES"] = vcap(bound("mesh", "xsuaa", {"clientsecret": CANARY}))
    assert here.refused("mesh") == (
        "VCAP_SERVICES: the binding named 'mesh': messaging: missing: is this a service key of Event Mesh?"
    )


def test_without_credentials_there_is_no_key(here: Environment) -> None:
    """A binding without credentials, as asynchronous ones have while they are made, is an error."""
    entry = bound()
    del entry["credentials"]
    here.variables["VCAP_SERVICES"] = vcap(entry | {"name": None, "instance_name": 5})
    assert here.refused().endswith(f"the only binding labelled {STANDARD}, '(no name)': it has no credentials")


# --- Cloud Foundry ---------------------------------------------------------------------------


def test_the_places_have_an_order(here: Environment) -> None:
    """The first place with a binding that fits decides, and the others are not looked at."""
    here.file.write_text(vcap(bound("file")), "utf-8")
    here.variables |= {"VCAP_SERVICES_FILE_PATH": str(here.file), "VCAP_SERVICES": vcap(bound("variable"))}
    here.mount("root", {"credentials": json.dumps(key("root"))})
    here.mount("i", {"credentials": json.dumps(key("legacy"))}, here.legacy / STANDARD)
    for place, host in (
        ("VCAP_SERVICES_FILE_PATH", "file"),
        ("VCAP_SERVICES", "variable"),
        ("SERVICE_BINDING_ROOT", "root"),
    ):
        assert host_of(here.load()) == host
        assert host_of(here.load("root")) == "root"
        del here.variables[place]
    assert host_of(here.load()) == "legacy"
    assert here.load().origin == f"{here.legacy}: the only binding labelled {STANDARD}, 'i'"


def test_the_programs_own_environment_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments it is os.environ that is searched."""
    monkeypatch.delenv("VCAP_SERVICES_FILE_PATH", raising=False)
    monkeypatch.setenv("VCAP_SERVICES", vcap(bound("a"), bound("b")))
    assert host_of(ServiceKey.load(binding="b")) == "b"
    monkeypatch.setenv("VCAP_SERVICES", vcap(bound("a")))
    assert host_of(ServiceKey.load()) == "a"


@pytest.mark.parametrize("field", ["name", "instance_name", "binding_name"])
@pytest.mark.parametrize("label", [STANDARD, SUITE, "user-provided", "Enterprise-Messaging"])
def test_all_names_select(here: Environment, field: str, label: str) -> None:
    """A binding is selected by any of its names, whatever its label."""
    entries = [bound("a", label), bound("b", label)]
    entries[1] |= {"name": None, "instance_name": None, field: " wanted "}
    here.variables["VCAP_SERVICES"] = vcap(*entries)
    assert host_of(here.load("wanted")) == "b"


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("place", ["VCAP_SERVICES", "VCAP_SERVICES_FILE_PATH"])
def test_every_form_may_be_bound(here: Environment, place: str, name: str) -> None:
    """Every form of a key is read from VCAP_SERVICES and the file in its place, as it is from a file."""
    credentials, label = bare(name)
    text = vcap(bound(label=label, credentials=credentials))
    here.file.write_text(f"\ufeff{text}", "utf-8")
    here.variables[place] = {"VCAP_SERVICES": text}.get(place, str(here.file))
    assert same(here.load(), ServiceKey.load(load(name)))


def test_files_with_all_bindings(here: Environment) -> None:
    """A file may hold what is in VCAP_SERVICES, as a default-env.json does; a name selects among its bindings."""
    services = json.loads(vcap(bound("a"), bound("b"), bound("c", "xsuaa", {"x": 1})))
    for content in (services, {"VCAP_SERVICES": services, "x": 1}, {"VCAP_SERVICES": json.dumps(services)}):
        assert host_of(ServiceKey.load(content, binding="b")) == "b"
        with pytest.raises(ServiceKeyError, match=r"^the mapping given: 2 bindings fit, 'a', 'b': say which: binding="):
            ServiceKey.load(content)
        with pytest.raises(ServiceKeyError, match="no binding of Event Mesh found: the mapping given has 3, none with"):
            ServiceKey.load(content, binding="d")
    for wrong in ("[]", "5", "null"):
        with pytest.raises(ServiceKeyError, match="the JSON text given: not an object of labels and their bindings"):
            ServiceKey.load(f'{{"VCAP_SERVICES": {wrong}}}')
    with pytest.raises(ServiceKeyError, match=r"^the JSON text given: VCAP_SERVICES: is no valid JSON: line 1, column"):
        ServiceKey.load(json.dumps({"VCAP_SERVICES": "{"}))
    here.file.write_text("[]", "utf-8")
    with pytest.raises(ServiceKeyError, match="is no JSON object, so no service key"):
        ServiceKey.load(here.file)


def test_one_key_has_no_name() -> None:
    """A name beside a single key would choose nothing, so it is refused."""
    with pytest.raises(ServiceKeyError, match="this is one service key, there is no binding to choose: leave"):
        ServiceKey.load(key(), binding="mesh")


# --- Kubernetes ------------------------------------------------------------------------------


def bare(name: str) -> tuple[dict[str, Any], str]:
    """A key as a platform has it, not wrapped, and its label."""
    found = load(name)
    found = found.get("VCAP_SERVICES", {}).get(STANDARD, [found])[0]
    return found.get("credentials", found), SUITE if name in INTEGRATION_SUITE_KEYS else STANDARD


def same(one: ServiceKey, other: ServiceKey) -> bool:
    """Whether two keys say the same, wherever they are from."""
    names = ("messaging", "management", "namespace", "instance_id", "certificate")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def as_text(value: Any) -> str:
    """A value as the operator writes it into a secret."""
    return value if isinstance(value, str) else json.dumps(value)


def metadata(about: Mapping[str, str], credentials: Mapping[str, Any], *, container: bool = False) -> str:
    """A file .metadata."""
    properties: list[dict[str, Any]] = [
        {"name": name, "format": "text" if isinstance(value, str) else "json"} for name, value in credentials.items()
    ]
    if container:
        properties = [each | {"container": True} for each in properties]
    described = [{"name": name, "format": "text"} for name in about]
    return json.dumps({"metaDataProperties": described, "credentialProperties": properties})


FORMS = ["key-value", "secretKey", "secretRootKey", "secretTemplate"]


def secret(form: str, credentials: dict[str, Any], label: str, *, described: bool) -> dict[str, str]:
    """The files of a binding in one of the forms that SAP's operator makes, with or without a file .metadata."""
    about = {"type": label, "instance_name": "my-instance", "plan": "default", "tags": '["x"]', "instance_guid": "g"}
    match form:
        case "key-value":
            files = {name: as_text(value) for name, value in credentials.items()} | about
            more = metadata(about, credentials)
        case "secretKey":
            files = {"my-credentials": json.dumps(credentials)} | about
            more = metadata(about, {"my-credentials": credentials}, container=True)
        case "secretRootKey":
            files = {"everything": json.dumps(credentials | about)}
            more = metadata({}, {"everything": credentials}, container=True)
        case _:
            files = {"key.json": json.dumps({"name": "my-instance", "type": label, "credentials": credentials})}
            more = metadata({}, {"key.json": credentials})
    return files | ({".metadata": more} if described else {})


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
def test_every_form_may_be_mounted(here: Environment, name: str, form: str, described: bool, legacy: bool) -> None:
    """Every form of a key is read from folders in all forms and both layouts, by its instance's name too."""
    credentials, label = bare(name)
    files = secret(form, credentials, label, described=described)
    here.mount("folder", files, here.legacy / label if legacy else None)
    here.mount("login", {"type": "xsuaa", "clientsecret": CANARY}, here.legacy / "xsuaa" if legacy else None)
    expected = ServiceKey.load(load(name))
    for binding in (None, "folder", "my-instance"):
        found = here.load(binding)
        assert same(found, expected)
    assert here.load().origin.endswith(f": the only binding labelled {label}, 'folder'")


@pytest.mark.parametrize("name", [name for name in KEYS if name not in INTEGRATION_SUITE_KEYS])
@pytest.mark.parametrize("described", [True, False])
def test_the_content_tells(here: Environment, name: str, described: bool) -> None:
    """Without label and type it is the section messaging that tells; line ends that editors add do no harm."""
    credentials, _ = bare(name)
    files = {field: as_text(value) + "\r\n" for field, value in credentials.items()}
    here.mount("folder", files | ({".metadata": metadata({}, credentials)} if described else {}))
    found = here.load()
    assert same(found, ServiceKey.load(load(name)))
    assert found.origin.endswith(": the only binding with messaging in it, 'folder'")


@pytest.mark.parametrize("file", ["type", "label"])
def test_label_or_type_tell(here: Environment, file: str) -> None:
    """Either of the files label and type tells the service, in any case."""
    here.mount("folder", {"key": json.dumps(key()), file: f" {SUITE.title()}\n"})
    assert here.load().origin.endswith(f": the only binding labelled {SUITE}, 'folder'")


def test_what_is_hidden_is_not_read(here: Environment) -> None:
    """Kubernetes' own folders, files with a dot, and folders and pipes among the files are passed over."""
    here.mount("..data", {"key": json.dumps(key("data"))})
    here.mount(".hidden", {"key": json.dumps(key("hidden"))})
    folder = here.mount("mesh", {"key": json.dumps(key("mesh")), ".messaging": "x", ".broken.json": "{"})
    (folder / "messaging").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to("nowhere")
    (here.root / "a-file").write_text(json.dumps(key("file")), "utf-8")
    assert host_of(here.load()) == "mesh"
    assert host_of(here.load("mesh")) == "mesh"


def test_no_folder_is_there(here: Environment) -> None:
    """A root that is not there, or is a file, has no bindings."""
    here.file.write_text("x", "utf-8")
    for root in (here.root, here.file):
        here.variables["SERVICE_BINDING_ROOT"] = str(root)
        assert f"SERVICE_BINDING_ROOT ({root}) has no bindings; " in here.refused()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{", "is no valid JSON: line 1, column 2"),
        ("[]", "credentialProperties: not a list of objects"),
        ("{}", "credentialProperties: not a list of objects"),
        ('{"credentialProperties": [5]}', "credentialProperties: not a list of objects"),
        ('{"credentialProperties": [{}]}', "credentialProperties[0].name: no file has that name"),
        ('{"credentialProperties": [{"name": []}]}', "credentialProperties[0].name: no file has that name"),
        ('{"credentialProperties": [{"name": "../x"}]}', "credentialProperties[0].name: no file has that name"),
        ("", "is no valid JSON: line 1, column 1"),
    ],
)
def test_metadata_that_is_wrong(here: Environment, content: str, error: str) -> None:
    """A file .metadata that cannot be followed is an error in the binding that is chosen; it opens no other files."""
    here.mount("mesh", {"messaging": "[]", ".metadata": content})
    (here.root / "x").write_text(CANARY, "utf-8")
    assert here.refused().endswith(f"'mesh': the file '.metadata': {error}")


def test_metadata_decides(here: Environment) -> None:
    """What .metadata calls JSON must be that, what it calls a text is one, and what it does not name is left out."""
    fields = metadata({"type": "x"}, {"messaging": [], "serviceinstanceid": "a"})
    files = {"type": STANDARD, "messaging": json.dumps(key()["messaging"]), "serviceinstanceid": '{"a": 1}'}
    here.mount("mesh", files | {"namespace": "not/named/here", ".metadata": fields})
    found = here.load()
    assert (found.instance_id, found.namespace) == ('{"a": 1}', None)
    here.mount("broken", files | {"messaging": f"[{CANARY}", ".metadata": fields})
    assert here.refused("broken").endswith("'broken': the file 'messaging': is no valid JSON: line 1, column 2")


def test_what_only_looks_like_json_is_a_text(here: Environment) -> None:
    """Without .metadata a value that begins like JSON and is none is a text; JSON of other things is left alone."""
    files = {name: as_text(value) for name, value in key().items()}
    here.mount("mesh", files | {"serviceinstanceid": "{guid}", "other": '{"a": {"messaging": 1}}', "list": "[1]"})
    assert here.load().instance_id == "{guid}"
    here.mount("mesh2", {"other": '{"a": {"messaging": 1}, "credentials": 5}', "type": STANDARD})
    assert here.refused("mesh2").endswith("messaging: missing: is this a service key of Event Mesh?")
