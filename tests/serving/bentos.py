"""Small real Bentos for tests: random weights on llama.cpp, and the stand-in for versions that are
bad on purpose.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.random_gguf import write
from tests.stand_ins import openai
from tests.stand_ins.engine import StandInArgs, options
from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento, bento_process
from weighbridge.serving.bento_process import RunningBento
from weighbridge.serving.engines.base import EngineArgs
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.serving.targets.base import Release
from weighbridge.tasks.measurement import Candidate, Variant


def gguf(workspace: Workspace, *, whole: bool = True) -> Artifact:
    """A random model; not `whole`: one whose header is right and whose weights are cut off."""
    with workspace.store.scratch() as scratch:
        path = write(scratch / "model.gguf")
        if not whole:
            path.write_bytes(path.read_bytes()[:-50_000])
        return workspace.store.add(scratch, "gguf", {"uri": "random"})


def engine(parallel: int = 2) -> EngineArgs:
    return LlamaCppArgs(threads=1, parallel=parallel, ctx_size=512 * parallel)


def candidate(workspace: Workspace, *, parallel: int = 2, whole: bool = True) -> Candidate:
    variant = Variant(label="gguf-Q8_0", optimizer="gguf", artifact=gguf(workspace, whole=whole))
    return Candidate(label="llama_cpp/gguf-Q8_0", variant=variant, engine=engine(parallel))


def contents(
    workspace: Workspace, *, parallel: int = 2, whole: bool = True, name: str = "Demo"
) -> bento.Contents:
    chosen = candidate(workspace, parallel=parallel, whole=whole)
    return bento.Contents(
        name, "1", chosen.label, chosen.engine, chosen.variant.artifact, {"recipe": "test"}
    )


def release(workspace: Workspace, *, parallel: int = 2, whole: bool = True) -> Release:
    """Built and exported; not proven."""
    what = contents(workspace, parallel=parallel, whole=whole)
    built = bento.build(what, workspace.settings.cache)
    exported = bento.export(built, what.model, workspace.store, {})
    return Release(name="demo", version="1", bento=built.tag, digest=exported.digest)


@contextmanager
def running(
    engine: EngineArgs, model: Artifact, workspace: Workspace, log: Path
) -> Iterator[RunningBento]:
    """A Bento of this engine and model, exported and started in its own environment."""
    contents = bento.Contents("tiny", "1", f"{engine.kind}/{model.format}", engine, model, {})
    cache = workspace.settings.cache
    exported = bento.export(bento.build(contents, cache), model, workspace.store, {})
    with bento_process.serve(exported.path, cache, log, 180) as proof:
        yield proof


class StandIn(bento.Contents):
    """A Bento of llama.cpp, which carries the stand-in server as its native
    `llama-server`.

    So it needs no plugin and no environment that other tests do not need, too.
    """

    def programs(self) -> list[Path]:
        return [self.model.path / "llama-server"]


def stand_in_release(
    workspace: Workspace,
    version: str,
    *,
    name: str = "demo",
    answers: Mapping[str, str] | None = None,
    peak_memory: int = 0,
    **faults: Any,
) -> Release:
    """A version that answers at once, from `answers`, and is bad as `faults` (of `StandInArgs`)
    say.

    Two versions with the same faults are two Bentos, and the answers of each are its own name:
    `version 7`.
    """
    args = StandInArgs.model_validate({"default": f"version {version}", **faults})
    with workspace.store.scratch() as scratch:
        (scratch / "model.gguf").write_text(json.dumps(dict(answers or {})))
        program = scratch / "llama-server"
        program.write_text(_program(options(args)))
        program.chmod(0o755)
        model = workspace.store.add(scratch, "gguf", {"uri": "stand-in"})
    engine = LlamaCppArgs(build="native", threads=1, parallel=1, ctx_size=512)
    what = StandIn(
        name, version, "stand_in/answers", engine, model, {"recipe": "test", "version": version}
    )
    built = bento.build(what, workspace.settings.cache)
    exported = bento.export(built, model, workspace.store, {})
    return Release(
        name=name, version=version, bento=built.tag, digest=exported.digest, peak_memory=peak_memory
    )


def _program(words: list[str]) -> str:
    """A stand-in with these options built in; it takes address and model as llama-server does."""
    head = (
        f"#!{sys.executable} -I\n"
        "import sys\n"
        "given = lambda name: sys.argv[sys.argv.index(name) + 1]\n"
        f"sys.argv[1:] = [*{words!r}, '--port', given('--port'), '--answers', given('--model')]\n"
    )
    return head + Path(openai.__file__).read_text()


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
