"""The Containerfile of an image: a pure function of what the image is to hold.

::

    environment    uv makes the locked environment, every package checked by its hash
    own            our own package in it; only in the image of the control plane
    (last stage)   base, that environment, a user that is not root: no compiler, no cache, no uv

Docker, podman and buildah read it alike. What says where packages come from may hold a password:
it is mounted as a secret, and stays in no layer.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from weighbridge.core.container_layout import CACHE, HOME, USER

ROOT: Final = "/opt/weighbridge"
BUILD: Final = "/build"
_OWN: Final = f"{BUILD}/own"
"""Folder of the build with what our own package adds to the environment."""
INDEX_SECRET: Final = "index"
"""Name of the secret that holds shell lines with uv's and pip's settings."""
CERTIFICATES_SECRET: Final = "certificates"
"""Name of the secret that holds the certificates by which an index is trusted."""
SECRETS: Final = "/run/secrets"
"""Where a build finds them."""
EPOCH: Final = 315532800
"""Date of all files, where SOURCE_DATE_EPOCH says no other: the first that a zip file can hold."""
_USER: Final = f"{USER}:{USER}"
_LEFTOVERS: Final = (
    *("/var/lib/apt/lists/*", "/var/cache/apt/*", "/var/cache/debconf/*-old"),
    *("/var/cache/ldconfig/aux-cache", "/var/log/apt", "/var/log/*.log"),
)
"""What apt-get leaves: the most of it holds dates."""


@dataclass(frozen=True)
class ImageContents:
    """What goes into an image. Files are named as they lie in the build's context."""

    name: str
    """`control`, or the engine's."""
    base: str
    locks: Sequence[str]
    labels: Mapping[str, str]
    wheels: bool = False
    """Whether the context has packages that no index has, in `wheels`."""
    own_wheel: str = ""
    """Our own package; empty in an image that only serves."""
    launcher: str = ""
    """Script that serves the Bento in /bento; empty: the image has no entry point."""
    system_packages: Sequence[str] = ()
    """Of Debian."""

    @property
    def environment(self) -> str:
        """Folder of its Python environment in the image."""
        return f"{ROOT}/{'control' if self.own_wheel else 'engine'}"


def containerfile(contents: ImageContents) -> str:
    """Return the text of its Containerfile; the same contents give the same text."""
    return "\n".join(
        [
            "# Written by: weighbridge image",
            f"ARG BASE={contents.base}",
            "",
            *_environment_stage(contents),
            "",
            *([*_own_stage(contents), ""] if contents.own_wheel else []),
            *_last_stage(contents),
            "",
        ]
    )


def _environment_stage(contents: ImageContents) -> list[str]:
    python, uv = f"{contents.environment}/bin/python", f"{BUILD}/uv/bin/uv"
    locks = [f"{BUILD}/locks/{lock}" for lock in contents.locks]
    offered = [f"--find-links={BUILD}/wheels"] if contents.wheels else []
    options = ["--no-cache", *offered, "--python", python]
    commands = [
        "set -eu",
        f"if [ -s {SECRETS}/{INDEX_SECRET} ]; then . {SECRETS}/{INDEX_SECRET}; fi",
        f"python3 -m venv {BUILD}/uv",
        f"{BUILD}/uv/bin/python -m pip install --quiet --no-cache-dir --no-deps --require-hashes "
        f"-r {BUILD}/locks/uv.lock",
        f'{uv} venv --python "$(command -v python3)" {contents.environment}',
        shlex.join([uv, "pip", "sync", *options, "--require-hashes", "--compile-bytecode", *locks]),
    ]
    return [
        "FROM ${BASE} AS environment",
        f"ARG SOURCE_DATE_EPOCH={EPOCH}",
        # By content, so that bytecode holds whatever dates a layer gives the files.
        "ENV PYC_INVALIDATION_MODE=UNCHECKED_HASH UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy",
        f"COPY locks {BUILD}/locks",
        *([f"COPY wheels {BUILD}/wheels"] if contents.wheels else []),
        f"RUN --mount=type=secret,id={INDEX_SECRET} "
        f"--mount=type=secret,id={CERTIFICATES_SECRET} {_joined(commands)}",
    ]


def _own_stage(contents: ImageContents) -> list[str]:
    """Install our own package where it is to lie, and set apart what that adds."""
    folder, python = f"{BUILD}/own-wheel", f"{contents.environment}/bin/python"
    name, version, *_ = contents.own_wheel.split("-")
    install = [f"{BUILD}/uv/bin/uv", "pip", "install", "--no-cache", "--no-deps", "--no-index"]
    # By its name: of a file that it is given, an installer writes down where that lay.
    install += [f"--find-links={folder}", "--python", python, f"{name}=={version}"]
    packages = f"{contents.environment}/lib/python3*/site-packages"
    commands = [
        "set -eu",
        shlex.join(install),
        # Of a wheel on this disk, uv writes down when that was made.
        f"rm -f {packages}/{name}-*.dist-info/uv_cache.json",
        f"sed -i /uv_cache.json/d {packages}/{name}-*.dist-info/RECORD",
        # Not by uv, which would compile the whole environment anew.
        f"{python} -m compileall -q --invalidation-mode unchecked-hash {packages}/{name}",
        f"mkdir {_OWN}",
        f"cd {ROOT}",
        # No pipe: of one, `sh` sees only how its last command ended.
        f"find . '(' -path '*/site-packages/{name}*' -type f -o -path '*/bin/{name}' ')' "
        f"-exec cp --archive --parents --target-directory={_OWN} '{{}}' +",
    ]
    return [
        "FROM environment AS own",
        f"COPY {contents.own_wheel} {folder}/{contents.own_wheel}",
        f"RUN {_joined(commands)}",
    ]


def _last_stage(contents: ImageContents) -> list[str]:
    return [
        "FROM ${BASE}",
        f"ARG SOURCE_DATE_EPOCH={EPOCH}",
        f"RUN {_joined(_prepare(contents.system_packages))}",
        f"COPY --from=environment {ROOT} {ROOT}",
        # After the others, so that what changes most often is a layer of megabytes.
        *([f"COPY --from=own {_OWN} {ROOT}"] if contents.own_wheel else []),
        *_entry_point(contents),
        *(f"ENV {name}={value}" for name, value in _variables(contents).items()),
        *(f"LABEL {name}={_quoted(value)}" for name, value in sorted(contents.labels.items())),
        # A number: Kubernetes refuses to run a name that it cannot tell from root's.
        f"USER {_USER}",
        f"WORKDIR {HOME}",
    ]


def _prepare(packages: Sequence[str]) -> list[str]:
    """Return the commands that make user, folders and system packages."""
    folders = f"{HOME} {CACHE}"
    account = f"weighbridge:x:{_USER}::{HOME}:/usr/sbin/nologin"
    commands = [
        "set -eu",
        f"echo {account} >> /etc/passwd",
        f"echo weighbridge:x:{USER}: >> /etc/group",
        f"mkdir -p {folders}",
        f"chown {_USER} {folders}",
    ]
    if packages:
        names = shlex.join(packages)
        installing = (
            "apt-get -qq update && DEBIAN_FRONTEND=noninteractive "
            f"apt-get -qq install -y --no-install-recommends {names} >/dev/null"
        )
        # A base that has them already is not asked for a mirror.
        commands += [
            f"if ! dpkg -s {names} >/dev/null 2>&1; then {installing}; fi",
            f"rm -rf {' '.join(_LEFTOVERS)}",
        ]
    return commands


def _entry_point(contents: ImageContents) -> list[str]:
    if not contents.launcher:
        # None: workers of Prefect give the command of a flow run.
        return ['CMD ["weighbridge", "--help"]']
    launcher = f"{ROOT}/{contents.launcher}"
    return [
        f"COPY {contents.launcher} {launcher}",
        f'ENTRYPOINT ["{contents.environment}/bin/python", "-I", "{launcher}"]',
        "EXPOSE 3000",
        "STOPSIGNAL SIGTERM",
    ]


def _variables(contents: ImageContents) -> dict[str, str]:
    # What only serves keeps nothing: it writes where a read-only container can write.
    home = "/tmp" if contents.launcher else HOME
    return {
        "PATH": f"{contents.environment}/bin:$PATH",
        "HOME": home,
        "WEIGHBRIDGE_HOME": HOME,
        "WEIGHBRIDGE_CACHE": CACHE,
        "BENTOML_HOME": f"{home}/bentoml",
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONUNBUFFERED": "1",
    }


def _joined(commands: Sequence[str]) -> str:
    return "; \\\n    ".join(commands)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
