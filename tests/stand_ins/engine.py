"""The stand-in server as an `engine` plugin: what a third party's would look like, and what can go
wrong with one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from tests.stand_ins import openai
from weighbridge.core.artifact import Format
from weighbridge.serving.engines.base import Capabilities, Engine, EngineArgs
from weighbridge.serving.engines.command_line import variations

PATH = "tests.stand_ins.engine:StandInEngine"


class StandInArgs(EngineArgs):
    """Options of `tests/stand_ins/openai.py`."""

    kind: Literal["stand_in"] = "stand_in"
    default: str = "one two three four"
    first_delay: float = 0.0
    token_delay: float = 0.0
    load_seconds: float = 0.0
    error_every: int = 0
    error_share: float = 0.0
    garbage: bool = False
    slower: float = 1.0
    leak: int = 0
    never_ready: bool = False
    die_after: int = 0
    die_seconds: float = 0.0
    die_loading: str = ""
    context: int = 0
    truncate_every: int = 0
    unfinished_every: int = 0
    drains: bool = False
    no_counts: bool = False
    flaws: tuple[str, ...] = ()
    threads: int | None = None
    """Tuned: answers come `0.02 * |threads - 2|` s later."""


def options(args: StandInArgs) -> list[str]:
    """Return the options of `openai.py` that make it do as `args` say."""
    given = args.model_dump(exclude={*EngineArgs.model_fields, "threads"})
    given["first_delay"] += 0.02 * abs((args.threads or 2) - 2)
    names = {name: name.replace("_", "-") for name in given}
    switches = [f"--{names[name]}" for name in openai.SWITCHES if given.pop(name)]
    switches += [f"--flaw={flaw}" for flaw in given.pop("flaws")]
    return [*(f"--{names[name]}={value}" for name, value in given.items()), *switches]


class StandInEngine(Engine[StandInArgs]):
    """Serves any GGUF artifact: its file is the table of answers."""

    name: ClassVar[str] = "stand_in"
    Args: ClassVar[type[EngineArgs]] = StandInArgs
    formats: ClassVar[frozenset[Format]] = frozenset({"gguf"})
    locks: ClassVar[Mapping[str, Path]] = {"cpu": Path(__file__).with_name("engine.lock")}
    capabilities: ClassVar[Capabilities] = Capabilities(metrics=True)

    def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
        answers = model / "model.gguf"
        program = [str(python), "-I", openai.__file__]
        return [*program, f"--port={port}", f"--answers={answers}", *options(self.args)]

    def tunings(self, cores: int) -> Sequence[StandInArgs]:
        return variations(self.args, threads=(1, 2, 8))

    def tokenize(self, url: str, text: str) -> list[int]:
        return [len(word) for word in text.split()]
