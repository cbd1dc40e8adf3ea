"""What answers: what an `engine` plugin offers. A caller never asks which engine it has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.artifact import Format
from weighbridge.core.errors import Unavailable

REAPER: Final = Path(__file__).resolve().parents[1] / "reaper.py"


class EngineArgs(BaseModel):
    """Base of every engine's arguments; `kind` names the plugin. Options keep the engine's own
    names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    start_timeout: float = Field(
        300.0, gt=0, description="Seconds until the first real token must have come."
    )


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; the conformance suite proves each claim."""

    devices: frozenset[str] = frozenset({"cpu"})
    streaming: bool = True
    lora: bool = False
    embeddings: bool = False
    metrics: bool = False
    extras: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Checks of the conformance suite that it is known not to pass, each with the reason; it is
    held to all others.
    """


class Engine(Protocol):
    """A command that listens on a port and speaks OpenAI's HTTP API.

    One that cannot start everywhere, or with every model, also has `check(args, model=None)`: see
    `check_engine`. One whose log ends with other things than why it failed has `reason(log)`: the
    words that matter, or none.
    """

    name: ClassVar[str]
    Args: ClassVar[type[EngineArgs]]
    formats: ClassVar[frozenset[Format]]
    locks: ClassVar[Mapping[str, Path]]
    """The lock of its environment by device, such as `cpu` or `cuda`."""
    packages: ClassVar[tuple[str, ...]]
    """Packages whose versions say which version of the engine it is."""
    capabilities: ClassVar[Capabilities]

    def device(self, args: Any) -> str:
        """What it would run on here: a key of `locks`. Cheap, and the same answer as long as the
        machine is.
        """

    def command(self, model: Path, args: Any, host: str, port: int, python: Path) -> list[str]:
        """The command line; `model` is the artifact's folder, `python` the interpreter of the
        locked environment.
        """

    def env(self, args: Any) -> dict[str, str]:
        """Environment variables on top of the caller's."""

    def tunings(self, args: Any, cores: int) -> Sequence[Any]:
        """Arguments worth measuring against each other on this machine, where `args` leaves them
        open.
        """

    def token_logprobs(
        self, url: str, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[float]:
        """Natural-log probability of every completion token after the prompt, under the serving
        engine.

        `url` is the server's base without `/v1`. Raises NotImplementedError where its API cannot
        tell.
        """

    def tokenize(self, url: str, text: str) -> list[int]:
        """Token ids the running engine gives a text (special tokens parsed, none added)."""


@runtime_checkable
class TellsChat(Protocol):
    """An engine whose API shows what it makes of a chat."""

    def chat_tokens(self, url: str, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of the messages under the model's chat template, up to where the answer begins."""


def guarded(command: Sequence[str], python: Path) -> list[str]:
    """The same command for a server of several processes: all of them end with its first one,
    however that ends.
    """
    return [str(python), "-I", str(REAPER), "--reap-group", "--", *command]


def check_engine(engine: Engine, args: EngineArgs, model: Path | None = None) -> None:
    """Refuse what the engine cannot do on this machine, with this model if one is given, before
    time is spent on it.

    Raises:
        Unavailable: a device that it needs is missing, or lacks something.
        BadInput: its options cannot work together, or not with the device.
    """
    if check := getattr(engine, "check", None):
        check(args, model)


def lock_of(engine: Engine, args: EngineArgs) -> Path:
    """The lock of the environment that the engine runs in under these arguments on this machine.

    Raises:
        Unavailable: the engine has none for that device.
    """
    device = engine.device(args)
    if device not in engine.locks:
        known = ", ".join(engine.locks) or "none"
        raise Unavailable(
            f"choosing the environment of {engine.name}",
            f"it has none for {device}",
            f"known: {known}",
        )
    return engine.locks[device]
