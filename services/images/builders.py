"""docker, podman and buildah: the same few commands, found on this machine."""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.formatting import one_line
from weighbridge.core.processes import Finished, run
from weighbridge.services.images.containerfile import EPOCH

BUILDERS: Final = ("docker", "podman", "buildah")
_REFUSED: Final = re.compile(
    r"unauthorized|access denied|denied:|authentication required|no basic auth|forbidden",
    re.IGNORECASE,
)
_BUILDKIT: Final = {"DOCKER_BUILDKIT": "1"}
"""Older versions of Docker know secrets of a build only so."""
_STEP: Final = re.compile(r"building at STEP|^\[\d+/\d+\] STEP|^#\d+ ")
"""Lines in which podman, buildah or Docker repeat what they were told to do."""
OnLine = Callable[[str], None]


@dataclass(frozen=True)
class Builder:
    """One of them, which answers."""

    name: str

    def has(self, reference: str) -> bool:
        """Whether an image of this name is on the machine."""
        return self._ask(*self._inspect(), reference).status == 0

    def pinned(self, base: str, on_line: OnLine) -> str:
        """Return the name of a base with its digest, pulled where it is not here yet.

        One that was made on this machine and has none keeps its name.

        Raises:
            Unavailable: it cannot be pulled.
        """
        if "@sha256:" in base:
            return base
        if not self.has(base):
            self.do(f"pulling {base}", on_line, "pull", base)
        digest = self._digest_of(base)
        return f"{base}@{digest}" if digest and not base.startswith("localhost/") else base

    def build(
        self,
        context: Path,
        reference: str,
        secrets: Mapping[str, Path],
        options: Sequence[str],
        on_line: OnLine,
    ) -> None:
        """Build the Containerfile of a context, which may read secrets out of files.

        Raises: Unavailable: it fails; the builder's last words.
        """
        epoch = os.environ.get("SOURCE_DATE_EPOCH", str(EPOCH))
        arguments = [
            *("--file", str(context / "Containerfile"), "--tag", reference),
            *("--build-arg", f"SOURCE_DATE_EPOCH={epoch}"),
            *(word for name, path in secrets.items() for word in ("--secret", _secret(name, path))),
            # Docker takes the date of what it makes from the argument alone.
            *(() if self.name == "docker" else ("--timestamp", epoch)),
            *options,
        ]
        self.do(f"building {reference}", on_line, "build", *arguments, str(context))

    def push(self, reference: str, on_line: OnLine) -> None:
        """Push an image.

        Raises:
            BadInput: the registry wants a login.
            Unavailable: it does not take it.
        """
        self.do(f"pushing {reference}", on_line, "push", reference)

    def do(self, doing: str, on_line: OnLine, *arguments: str) -> None:
        """Run one of its commands. Raises BadInput, Unavailable: with its last words."""
        done = run(self.name, [self.name, *arguments], env=_BUILDKIT, on_line=on_line)
        if done.status == 0:
            return
        wrong = _last_words(done.output) or f"{self.name} ended with status {done.status}"
        if _REFUSED.search(done.output):
            raise BadInput(doing, wrong, f"log in to the registry: {self.name} login HOST")
        raise Unavailable(doing, wrong)

    def _digest_of(self, base: str) -> str:
        template = "{{index .RepoDigests 0}}" if self.name != "buildah" else "{{.FromImageDigest}}"
        done = self._ask(*self._inspect(template), base)
        digest = re.search(r"sha256:[0-9a-f]{64}", done.output)
        return digest[0] if done.status == 0 and digest else ""

    def _inspect(self, template: str = "") -> list[str]:
        words = ["inspect", "--type", "image"] if self.name == "buildah" else ["image", "inspect"]
        return [*words, *(["--format", template] if template else [])]

    def _ask(self, *arguments: str) -> Finished:
        return run(self.name, [self.name, *arguments])


def _secret(name: str, path: Path) -> str:
    return f"id={name},src={path}"


def _last_words(output: str) -> str:
    """Return why a builder ended: what a step said, not the step itself, which is long."""
    lines = [line for line in output.strip().splitlines() if not _STEP.search(line)]
    return one_line(" ".join(lines[-3:]))[-480:]


def find_builder(name: str | None) -> Builder:
    """Return the builder of this name, or the first that answers.

    Raises:
        BadInput: none is called so.
        Unavailable: it, or each of them, is missing or does not answer.
    """
    if name is not None and name not in BUILDERS:
        doing = f"looking for the builder '{name}'"
        raise BadInput(doing, "there is none of this name", f"known: {', '.join(BUILDERS)}")
    why = []
    for candidate in [name] if name else BUILDERS:
        problem = _problem(candidate)
        if not problem:
            return Builder(candidate)
        why.append(f"{candidate}: {problem}")
    remedy = "install one: apt-get install podman; or look at the text alone: --dry-run"
    raise Unavailable("looking for docker, podman or buildah", "; ".join(why), remedy)


def _problem(name: str) -> str:
    """Return why a builder can't be used, empty where it can."""
    if not shutil.which(name):
        return "not on the PATH"
    # Docker's client alone builds nothing.
    words = ["version", "--format", "{{.Server.Version}}"] if name == "docker" else ["version"]
    done = run(name, [name, *words])
    return "" if done.status == 0 else done.tail(1)[-160:]
