"""Small real Bentos for tests: random weights on llama.cpp, one engine option apart from each other."""

from pathlib import Path

from benchmarks.random_gguf import write
from core.artifact import Artifact
from core.plugins import load
from core.workspace import Workspace
from serving import bento
from serving.engines.base import EngineArgs
from serving.targets.base import Release
from tasks.measurement import Candidate, Variant


def gguf(workspace: Workspace, *, whole: bool = True) -> Artifact:
    """A random model; not `whole`: one whose header is right and whose weights are cut off."""
    with workspace.store.scratch() as scratch:
        path = write(scratch / "model.gguf")
        if not whole:
            path.write_bytes(path.read_bytes()[:-50_000])
        return workspace.store.add(scratch, "gguf", {"uri": "random"})


def engine(parallel: int = 2) -> EngineArgs:
    args: EngineArgs = load("engine", "llama_cpp").Args(threads=1, parallel=parallel, ctx_size=512 * parallel)
    return args


def candidate(workspace: Workspace, *, parallel: int = 2, whole: bool = True) -> Candidate:
    variant = Variant(label="gguf-Q8_0", optimizer="gguf", artifact=gguf(workspace, whole=whole))
    return Candidate(label="llama_cpp/gguf-Q8_0", variant=variant, engine=engine(parallel))


def contents(workspace: Workspace, *, parallel: int = 2, whole: bool = True, name: str = "Demo") -> bento.Contents:
    made = candidate(workspace, parallel=parallel, whole=whole)
    return bento.Contents(name, "1", made.label, made.engine, made.variant.artifact, {"recipe": "test"})


def release(workspace: Workspace, *, parallel: int = 2, whole: bool = True) -> Release:
    """Built and exported; not proven."""
    what = contents(workspace, parallel=parallel, whole=whole)
    built = bento.build(what, workspace.settings.cache)
    exported = bento.export(built, what.model, workspace.store, {})
    return Release(name="demo", version="1", bento=built.tag, digest=exported.digest)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
