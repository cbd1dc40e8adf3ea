"""Make uv look for packages where the user's pip looks.

uv reads neither pip's variables nor its pip.conf; a machine behind a mirror often has nothing else.
Nothing but the standard library is imported: the Makefile runs this file before anything is
installed, and evaluates what it prints in its shell.
"""

import configparser
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from functools import cache as remember
from pathlib import Path

logger = logging.getLogger(__name__)

INDEX_VARIABLES = frozenset(
    ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_NO_INDEX")
)
"""By which uv is told of package indexes."""


def uv_variables() -> Mapping[str, str]:
    """Return variables that make uv look where pip looks, unless uv is told otherwise."""
    return _uv_variables(
        tuple(
            sorted((k, v) for k, v in os.environ.items() if k.startswith(("UV_", "PIP_", "SSL_")))
        )
    )


def find_links() -> list[Path]:
    """Return the folders of wheels that uv or pip is told of."""
    listed = {**os.environ, **uv_variables()}.get("UV_FIND_LINKS", "")
    return [Path(folder.removeprefix("file://")) for folder in listed.replace(",", " ").split()]


@remember
def _uv_variables(environment: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    pip = _pip_options(dict(environment))
    variables: dict[str, str] = {}
    if pip.get("find-links"):
        variables["UV_FIND_LINKS"] = pip["find-links"].replace(" ", ",")
    if pip.get("cert"):
        variables["SSL_CERT_FILE"] = pip["cert"]
    # Where one of these is set, the user told uv itself where to look: pip's index is not added.
    if not (INDEX_VARIABLES | {"UV_CONFIG_FILE"}) & {name for name, _ in environment}:
        variables |= _index_variables(pip)
    return {name: value for name, value in variables.items() if name not in dict(environment)}


def _index_variables(pip: Mapping[str, str]) -> dict[str, str]:
    variables = {}
    if pip.get("index-url"):
        variables["UV_DEFAULT_INDEX"] = pip["index-url"]
    if pip.get("extra-index-url"):
        # pip takes the best of all indexes; uv would stop at the first that has the name. The
        # locks' hashes guard it.
        variables |= {"UV_INDEX": pip["extra-index-url"], "UV_INDEX_STRATEGY": "unsafe-best-match"}
    if pip.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        variables["UV_NO_INDEX"] = "1"
    return variables


def _pip_options(environment: Mapping[str, str]) -> dict[str, str]:
    """Return pip's options that we pass on.

    pip's variables win over its files, the user's file over the system's.
    """
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = [
        Path("/etc/pip.conf"),
        Path.home() / ".pip/pip.conf",
        config / "pip/pip.conf",
        Path(sys.prefix) / "pip.conf",
    ]
    if named_file := environment.get("PIP_CONFIG_FILE"):
        # pip reads no file at all where this names the null device.
        files = [] if named_file == os.devnull else [*files, Path(named_file)]
    # Raw, as pip's own: a percent sign in a URL's password is no interpolation.
    parser = configparser.RawConfigParser()
    try:
        parser.read(files)
    except configparser.Error as exc:
        logger.warning("pip's configuration is not read: %s", " ".join(str(exc).split()))
    options = dict(parser["global"]) if parser.has_section("global") else {}
    for name in ("index-url", "extra-index-url", "find-links", "cert", "no-index"):
        if value := environment.get(f"PIP_{name.upper().replace('-', '_')}"):
            options[name] = value
    return {name: " ".join(value.split()) for name, value in options.items()}


def main() -> None:
    """Print the variables as assignments of a shell."""
    for name, value in uv_variables().items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
