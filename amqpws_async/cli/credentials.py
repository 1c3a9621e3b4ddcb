"""Where secrets come from: environment variables and files, never arguments, which every user of a machine can list."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from .. import Plain
from .failures import ExitStatus, Failure

__all__ = ["add_credentials", "read_headers", "read_sasl", "read_token", "read_users"]

# What a message about one of these options must not do is repeat what was given: it may be the secret itself.


class _Refused(argparse.Action):
    """An option that would have a secret for its argument."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs="?", help=argparse.SUPPRESS)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        name = self.option_strings[0]
        parser.error(
            f"{name} is not taken, since arguments are visible to everyone on this machine: "
            f"put the secret in an environment variable or a file, and use {name}-env NAME or {name}-file FILE"
        )


def add_credentials(group: argparse._ArgumentGroup) -> None:
    """Add the options by which a connection gets its token, or its user and password."""
    token = group.add_mutually_exclusive_group()
    token.add_argument("--token-env", metavar="NAME", help="access token for the upgrade, in this environment variable")
    token.add_argument("--token-file", metavar="FILE", type=Path, help="access token for the upgrade, in this file")
    group.add_argument("--user", metavar="NAME", help="user for SASL PLAIN")
    password = group.add_mutually_exclusive_group()
    password.add_argument("--password-env", metavar="NAME", help="that user's password, in this environment variable")
    password.add_argument("--password-file", metavar="FILE", type=Path, help="that user's password, in this file")
    group.add_argument(
        "--header-file", metavar="FILE", type=Path, help="more headers for the upgrade, each a line 'Name: value'"
    )
    group.add_argument("--token", action=_Refused)
    group.add_argument("--password", action=_Refused)


def read_token(arguments: argparse.Namespace) -> str | None:
    """The access token, or None."""
    return _secret(arguments, "token")


def read_sasl(arguments: argparse.Namespace) -> Plain | None:
    """The user and password, or None."""
    password = _secret(arguments, "password")
    if arguments.user is None:
        if password is not None:
            raise Failure(ExitStatus.USAGE, "a password needs its --user NAME")
        return None
    if password is None:
        raise Failure(ExitStatus.USAGE, "--user needs --password-env NAME or --password-file FILE")
    return Plain(arguments.user, password)


def read_headers(arguments: argparse.Namespace) -> dict[str, str]:
    """The headers of `--header-file`."""
    if arguments.header_file is None:
        return {}
    return _pairs(_read("--header-file", arguments.header_file), "--header-file", "Name: value")


def read_users(file: Path | None) -> Mapping[str, str] | None:
    """The users of `--users-file`, by name, or None if there is no such file."""
    return None if file is None else _pairs(_read("--users-file", file), "--users-file", "name:password")


def _pairs(text: str, option: str, form: str) -> dict[str, str]:
    pairs = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not (name.strip() and colon and value.strip()):
            raise Failure(ExitStatus.USAGE, f"{option}: line {number} is not of the form '{form}'")
        pairs[name.strip()] = value.strip()
    return pairs


def _secret(arguments: argparse.Namespace, what: str) -> str | None:
    name = getattr(arguments, f"{what}_env")
    file = getattr(arguments, f"{what}_file")
    if name is not None:
        value = os.environ.get(name)
        option = f"--{what}-env"
        if value is None:
            raise Failure(ExitStatus.USAGE, f"{option} takes the name of an environment variable: that one is not set")
    elif file is not None:
        option = f"--{what}-file"
        value = _read(option, file).rstrip("\r\n")
    else:
        return None
    if not value:
        raise Failure(ExitStatus.USAGE, f"{option}: the {what} is empty")
    return value


def _read(option: str, file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise Failure(ExitStatus.USAGE, f"{option}: cannot read it: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(ExitStatus.USAGE, f"{option}: it is not UTF-8 text") from None
