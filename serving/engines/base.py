"""The base class of every `engine` plugin: a caller never asks which engine it has."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeVar

from weighbridge.core.artifact import Format
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.plugins import load
from weighbridge.serving.client_requests import OPENAI_OPERATIONS, is_operation
from weighbridge.serving.openai_client import get

AUTO_SLOTS: Final = 4
"""Answers decoded together where nobody says how many."""
AUTO_CONTEXT: Final = 4096
"""Most tokens of context per answer where nobody says how many: a model that was trained for a long
context would take all memory.
"""

Feature = Literal["streaming", "lora", "embeddings", "metrics"]


class EngineArgs(BaseModel):
    """Base of every engine's arguments; `kind` names the plugin. Options keep the engine's own
    names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    start_timeout: float = Field(
        300.0, gt=0, description="Seconds until the first real token must have come."
    )
    temperature: float = Field(
        0.0,
        ge=0,
        le=2,
        description="Of answers whose request names none, and of weighing; 0: the likeliest token.",
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the likeliest tokens that are drawn from, where a request names "
        "none, and in weighing.",
    )

    def sampling(self) -> dict[str, float]:
        """Return how what a request says nothing of is drawn, under OpenAI's names."""
        return {"temperature": self.temperature, "top_p": self.top_p}

    def changed(self) -> dict[str, Any]:
        """Return the options that are not as by default, as JSON."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})


# Covariant, so that an `Engine[VllmArgs]` may stand where an `Engine` is asked for: `args` is Final
# for that.
ArgsT = TypeVar("ArgsT", bound=EngineArgs, covariant=True, default=EngineArgs)


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; the conformance suite proves each claim."""

    devices: frozenset[str] = frozenset({"cpu"})
    streaming: bool = True
    lora: bool = False
    embeddings: bool = False
    metrics: bool = False
    extras: Mapping[str, str] = field(default_factory=dict)
    """Remarks for people, by a short title. Under `not run` stands why the project's own tests
    cannot run the engine.
    """
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Checks of the conformance suite that it is known not to pass, each with the reason; it is
    held to all others.
    """

    def offers(self, feature: Feature) -> bool:
        """Whether it claims to do this."""
        return bool(getattr(self, feature))


class Engine(ABC, Generic[ArgsT]):
    """A command that listens on a port and speaks OpenAI's HTTP API, under given arguments.

    A plugin names its class of arguments once, `class MyEngine(Engine[MyArgs])`, sets the class
    attributes and writes `command`. Whatever else an engine can do or needs has a default here.
    Creating an object must be cheap: nothing is loaded, started or looked up before a method is
    called.
    """

    name: ClassVar[str]
    """What a recipe calls it: the `kind` of its arguments."""
    Args: ClassVar[type[EngineArgs]]
    """The class of its arguments."""
    formats: ClassVar[frozenset[Format]]
    """Formats of artifacts that it serves."""
    locks: ClassVar[Mapping[str, Path]]
    """The lock file of its environment by device, such as `cpu` or `cuda`."""
    system_packages: ClassVar[tuple[str, ...]] = ()
    """Packages of Debian without which it does not run in a container."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages of its lock whose versions say which version of the engine it is."""
    capabilities: ClassVar[Capabilities] = Capabilities()
    health: ClassVar[str] = "/health"
    """Path at which its server says with status 200 that it is well."""
    operations: ClassVar[frozenset[str]] = OPENAI_OPERATIONS
    """What clients may ask of its server beside its health: each a method and an exact path, such
    as `POST /v1/rerank`. The gateway, and the Bento where it is served alone, answer 404 to
    everything else: to metrics, and to whatever changes the server for others.
    """
    keeps_sampling: ClassVar[bool] = False
    """Whether its server, started under these arguments, draws by their `temperature` and `top_p`
    what a request names none for. Else clients' requests get them on their way to it.
    """
    name_option: ClassVar[str] = ""
    """Option that says by which name clients call the model; empty: it has none."""
    builds_natively: ClassVar[bool] = False
    """Whether `build_native` does anything."""
    takes_sizes: ClassVar[bool] = False
    """Whether `sized_for` does anything."""
    numerics: ClassVar[frozenset[str]] = frozenset()
    """Options that change the numbers it computes with, and so its answers: under each of their
    values quality is measured by itself.
    """

    def __init__(self, args: ArgsT) -> None:
        self.args: Final = args

    @abstractmethod
    def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
        """Return the command line that starts the server.

        The process ends on SIGTERM, and whatever it started ends with it. It is started in a
        folder of its own, with `env()` on top of the caller's environment variables.

        Args:
            model: Folder of the artifact, in one of `formats`.
            host: Address to listen on, such as `127.0.0.1`.
            port: Port to listen on; nothing else listens there.
            python: Interpreter of the environment that `lock()` describes. Start it with `-I`.

        Raises:
            Unavailable: A program that it needs is missing.
            BadInput: The model cannot be read.
        """

    def device(self) -> str:
        """Return what it would run on here: a key of `locks`.

        Cheap, and the same answer as long as the machine is the same.
        """
        return "cpu"

    def check(self, model: Path | None = None) -> None:
        """Refuse what cannot run on this machine, before time is spent on it.

        Args:
            model: Folder of the artifact that is to be served; None where it is not made yet.

        Raises:
            Unavailable: A device that it needs is missing, or lacks something.
            BadInput: Its options cannot work together, or not with the device.
        """

    def env(self) -> dict[str, str]:
        """Return the environment variables that it needs on top of the caller's."""
        return {}

    def called(self, name: str) -> ArgsT:
        """Return the arguments under which clients call the model by this name.

        Unchanged where it has no option for that, or where the recipe gives another name.
        """
        args, option = self.args, self.name_option
        if not option or getattr(args, option) != type(args).model_fields[option].default:
            return args
        return args.model_copy(update={option: name})

    def model_names(self) -> frozenset[str]:
        """Return every name by which clients may call the model; none where it does not say."""
        return frozenset({getattr(self.args, self.name_option)} if self.name_option else ())

    def sized_for(self, model: Path, tokens: int, answers: int) -> ArgsT:
        """Return the arguments with room for a load, where the recipe leaves that open.

        Args:
            model: Folder of the artifact, in one of `formats`.
            tokens: Of prompt and answer together, at most.
            answers: Generated together, at most.
        """
        return self.args

    def tunings(self, cores: int) -> Sequence[ArgsT]:
        """Return the arguments worth measuring against each other on this machine.

        What the recipe gave stays as it is; what it left open is varied. The first is used where
        nothing is measured.

        Args:
            cores: Processor cores that may be used.
        """
        return [self.args]

    def choices(self, cores: int, answers: int) -> Mapping[str, Sequence[Any]]:
        """Return the values that a search tries of each option, its default first.

        What `tunings` varies, unless an engine says more.

        Args:
            cores: Processor cores that may be used.
            answers: Generated together, at most.
        """
        tried = [args.model_dump() for args in self.tunings(cores)]
        values = {name: list(dict.fromkeys(one[name] for one in tried)) for name in _varied(tried)}
        return {name: several for name, several in values.items() if len(several) > 1}

    def record(self) -> Path | None:
        """Return the recorded grid that answers a search in place of a server; None: it serves."""
        return None

    def least_memory(self, model: Path) -> int:
        """Return the bytes that it takes at least under its arguments: those of the model's files,
        unless an engine knows what it reserves beside them.
        """
        return sum(file.stat().st_size for file in model.rglob("*") if file.is_file())

    # The next four are not abstract: OpenAI's API has no such thing, and most servers only that.
    def token_logprobs(
        self, url: str, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[float]:
        """Return the natural-log probability of every completion token after the prompt, as the
        running engine computes it.

        Args:
            url: Base address of the running server, without `/v1`.
            prompt: Token ids before the completion.
            completion: Token ids to judge, one value each.

        Raises:
            NotImplementedError: Its API cannot tell.
            Unavailable: The server does not answer, or leaves tokens out.
        """
        raise NotImplementedError(f"{self.name} tells no log-probabilities of given tokens")

    def token_distributions(
        self, url: str, prompt: Sequence[int], completion: Sequence[int], top: int
    ) -> list[dict[int, float]]:
        """Return, at every completion token, natural-log probabilities by token id: of the `top`
        likeliest ones, and of the token itself, whatever is drawn.

        Args:
            url: Base address of the running server, without `/v1`.
            prompt: Token ids before the completion.
            completion: Token ids at which it is asked, one mapping each.
            top: How many of the likeliest tokens.

        Raises:
            NotImplementedError: Its API cannot tell.
            Unavailable: The server does not answer, or leaves tokens out.
        """
        raise NotImplementedError(f"{self.name} tells no likeliest tokens at given ones")

    def tokenize(self, url: str, text: str) -> list[int]:
        """Return the token ids that the running engine gives a text: special tokens parsed, none
        added.

        Args:
            url: Base address of the running server, without `/v1`.
            text: Any text.

        Raises:
            NotImplementedError: Its API cannot tell.
            Unavailable: The server does not answer.
        """
        raise NotImplementedError(f"{self.name} has no route that tells tokens")

    def context(self, url: str) -> int | None:
        """Return the tokens that prompt and answer of one request may have together.

        Args:
            url: Base address of the running server, without `/v1`.

        Returns:
            What its list of models says, as vLLM's and ours do; None where it says nothing.

        Raises:
            Unavailable: The server does not answer.
        """
        models = get(f"{url}/v1/models")["data"]
        return next((model["max_model_len"] for model in models if "max_model_len" in model), None)

    def chat_tokens(self, url: str, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a chat under the model's template, up to where the answer begins.

        Args:
            url: Base address of the running server, without `/v1`.
            messages: Each with `role` and `content`.

        Raises:
            NotImplementedError: Its API cannot tell.
            Unavailable: The server does not answer.
        """
        raise NotImplementedError(f"{self.name} has no route that tells a chat's tokens")

    def reason(self, log: str) -> str | None:
        """Return why it failed in its own words, where the end of its log says something else.

        Args:
            log: All that it printed.

        Returns:
            One line, or None: then the end of the log is shown.
        """
        return None

    @classmethod
    def build_native(cls, cache: Path) -> Path:
        """Build the engine's own tools for this processor; only where `builds_natively`.

        Args:
            cache: Folder that keeps what is built.

        Returns:
            The folder of the tools.

        Raises:
            Unavailable: A compiler is missing, or the build failed.
        """
        raise NotImplementedError(f"{cls.name} has no native build")

    def lock(self) -> Path:
        """Return the lock file of the environment that it runs in on this machine.

        Raises:
            Unavailable: There is none for the device.
        """
        device = self.device()
        if device not in self.locks:
            devices = ", ".join(self.locks) or "none"
            raise Unavailable(
                f"choosing the environment of {self.name}",
                f"it has none for {device}",
                f"known: {devices}",
            )
        return self.locks[device]


def _varied(tried: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the options in which arguments differ."""
    first = tried[0] if tried else {}
    return [name for name in first if any(one[name] != first[name] for one in tried)]


def engine_class(name: str) -> type[Engine[Any]]:
    """Return the engine plugin of this name.

    Raises:
        BadInput: There is none, or what a package registered is no `Engine`, or opens what is no
            operation.
    """
    plugin = load("engine", name)
    # An entry point can name anything, and a plain function would fail much later.
    if not (isinstance(plugin, type) and issubclass(plugin, Engine)):
        found = getattr(plugin, "__qualname__", type(plugin).__name__)
        wrong = f"{found} is no class derived from weighbridge.plugins.Engine"
        raise BadInput(f"loading engine '{name}'", wrong, "correct or remove its package")
    # Here, since the gateway would refuse it after the whole release.
    for operation in plugin.operations:
        if not is_operation(operation):
            wrong = f"it declares the operation '{operation}'"
            raise BadInput(f"loading engine '{name}'", wrong, "write POST /v1/completions")
    return plugin


def engine_for(args: EngineArgs) -> Engine:
    """Return the engine that these arguments are for.

    Raises:
        BadInput: There is none of their `kind`.
    """
    return engine_class(args.kind)(args)
