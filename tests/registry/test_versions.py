"""Versions: registered once, whoever tries and whenever one is killed; lineage, aliases,
measurements.
"""

import multiprocessing
import shutil
from pathlib import Path

import pytest

from tests.registry.conftest import Make
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.registry import (
    Dataset,
    MeasuredFigures,
    MlflowRun,
    Registry,
    Version,
    logged_models,
)

TAGS = {"recipe": "demo", "recipe_digest": "sha256:1234"}


@pytest.fixture
def run(registry: Registry) -> MlflowRun:
    return registry.release("demo", 1, params={}, tags=TAGS)


@pytest.fixture
def chain(registry: Registry, run: MlflowRun, make: Make) -> list[Version]:
    base = registry.register(
        "demo", "base", make("base", uri="hf://org/base@abc"), run=run, tags=TAGS
    )
    adapter = registry.register(
        "demo", "adapter", make("adapter", "peft"), run=run, parent=base, tags=TAGS
    )
    merged = registry.register("demo", "merged", make("merged"), run=run, parent=adapter, tags=TAGS)
    variant = registry.register(
        "demo",
        "variant",
        make("q8", "gguf", "model.gguf"),
        run=run,
        parent=merged,
        label="gguf-Q8_0",
        tags=TAGS,
        params={"quantization": "Q8_0"},
    )
    return [base, adapter, merged, variant]


def folder_of(registry: Registry, version: Version) -> Path:
    folder = logged_models.local_folder(
        registry.connection.client.get_logged_model(version.model_id).artifact_location
    )
    assert folder is not None
    return folder


def test_every_version_says_what_it_is_and_what_it_was_made_from(
    registry: Registry, chain: list[Version]
) -> None:
    base, adapter, merged, variant = (registry.version("demo", one.version) for one in chain)
    assert [one.role for one in (base, adapter, merged, variant)] == [
        "base",
        "adapter",
        "merged",
        "variant",
    ]
    assert base.tags["source"] == "hf://org/base@abc"
    assert (variant.parent, variant.base, variant.label, variant.format) == (
        merged.version,
        base.version,
        "gguf-Q8_0",
        "gguf",
    )
    assert variant.tags["recipe"] == "demo"
    assert variant.tags["digest"] == variant.digest
    assert variant.tags["model_id"] == variant.model_id
    assert [one.version for one in registry.show("demo", variant.version).lineage] == [
        "1",
        "2",
        "3",
        "4",
    ]
    assert [one.label for one in registry.show("demo", "3").children] == ["gguf-Q8_0"]


def test_registering_again_gives_the_same_version(
    registry: Registry, run: MlflowRun, chain: list[Version], make: Make
) -> None:
    again = registry.register("demo", "base", make("base", uri="hf://elsewhere"), run=run)
    assert again.version == chain[0].version
    other = registry.register("demo", "base", make("another base"), run=run)
    assert other.version == "5"
    assert len(registry.versions("demo")) == 5


def test_files_are_linked_not_copied(registry: Registry, chain: list[Version], make: Make) -> None:
    folder, artifact = folder_of(registry, chain[0]), make("base")
    for name in ("weights.bin", "sub/config.json"):
        assert (folder / name).stat().st_ino == (artifact.path / name).stat().st_ino


def test_files_are_copied_where_links_cannot_be(
    registry: Registry, run: MlflowRun, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    artifact = make("base")
    monkeypatch.setattr("weighbridge.core.store.os.link", refuse)
    folder = folder_of(registry, registry.register("demo", "base", artifact, run=run))
    assert (folder / "weights.bin").read_text() == "weights.bin: base"
    assert (folder / "weights.bin").stat().st_ino != (artifact.path / "weights.bin").stat().st_ino


@pytest.mark.parametrize(
    "point", ["upload", "finalize_logged_model", "create_registered_model", "create_model_version"]
)
def test_killed_anywhere_and_tried_again_nothing_is_there_twice(
    registry: Registry, run: MlflowRun, make: Make, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    artifact = make("base")
    with monkeypatch.context() as patched:
        if point == "upload":
            patched.setattr(logged_models, "upload", die)
        else:
            patched.setattr(type(registry.connection.client), point, die)
        with pytest.raises(Killed):
            registry.register("demo", "base", artifact, run=run)
    version = registry.register("demo", "base", artifact, run=run)
    (model,) = registry.connection.client.search_logged_models([run.experiment_id])
    assert (model.model_id, str(model.status)) == (version.model_id, "READY")
    assert [one.version for one in registry.versions("demo")] == ["1"]
    assert (folder_of(registry, version) / "weights.bin").exists()


def _register(
    home: Path, artifact: Artifact, barrier: "multiprocessing.synchronize.Barrier"
) -> None:  # type: ignore[name-defined]
    registry = Registry.connect(Settings(home=home))
    run = registry.release("demo", 1, params={}, tags={})
    barrier.wait()
    registry.register("demo", "base", artifact, run=run)


@pytest.mark.slow
def test_two_processes_at_once_register_one_version(
    registry: Registry, workspace: Workspace, make: Make
) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier, artifact = spawn.Barrier(2), make("base")
    children = [
        spawn.Process(target=_register, args=(workspace.settings.home, artifact, barrier))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert len(registry.versions("demo")) == 1
    experiment = registry.connection.experiment("demo")
    assert len(registry.connection.client.search_logged_models([experiment])) == 1


def test_of_two_machines_that_did_not_see_each_other_the_lower_number_stays(
    registry: Registry, run: MlflowRun, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = registry.register("demo", "base", make("base"), run=run)
    seen: list[object] = []
    real = registry.connection.client.search_model_versions

    def blind_once(*args: object, **kwargs: object) -> object:
        seen.append(args)
        return [] if len(seen) == 1 else real(*args, **kwargs)

    monkeypatch.setattr(registry.connection.client, "search_model_versions", blind_once)
    assert registry.register("demo", "base", make("base"), run=run).version == first.version
    assert [one.version for one in registry.versions("demo")] == [first.version]


def test_an_alias_that_is_nearly_champion_is_found(
    registry: Registry, chain: list[Version]
) -> None:
    client = registry.connection.client
    for alias in ("Champion", "champoin", "production", "champion-old", "challenger"):
        client.set_registered_model_alias("demo", alias, "3")
    assert registry.misspelt_champions("demo") == {"Champion": "3", "champoin": "3"}
    registry.promote(chain[2])
    assert registry.misspelt_champions("demo") == {}, "they name what serves anyway"


def test_aliases_move_and_are_read_with_the_versions(
    registry: Registry, chain: list[Version]
) -> None:
    assert registry.champion("demo") is None
    assert registry.challenger("unknown") is None
    registry.set_challenger(chain[3], "llama_cpp/gguf-Q8_0")
    registry.promote(chain[3])
    registry.promote(chain[3])
    champion = registry.champion("demo")
    assert champion is not None
    assert champion.version == "4"
    assert registry.versions("demo")[0].aliases == ("challenger", "champion")
    registry.promote(chain[2])
    assert registry.version("demo", "champion").version == "3"


def test_a_measurement_is_on_the_candidates_logged_model_once_and_can_be_read_back(
    registry: Registry, run: MlflowRun, chain: list[Version], make: Make
) -> None:
    variant, data = chain[3], Dataset("validation", "sha256:d", "file:///data")
    predictions = make("answers", "jsonl", "predictions.jsonl").path / "predictions.jsonl"
    for label in ("llama_cpp/gguf-Q8_0", "other/gguf-Q8_0", "llama_cpp/gguf-Q8_0"):
        weighing = registry.stage(run, "weigh", label, name=f"weigh {label}")
        figures = [
            MeasuredFigures({"exact_match": 0.99, "broken": float("nan")}, data),
            MeasuredFigures({"peak_memory_bytes": 1000}),
        ]
        registry.record_measurement(
            registry.version("demo", variant.version),
            label,
            run=weighing,
            document=f'{{"label": "{label}"}}',
            figures=figures,
            params={"engine.threads": "1"},
            files={"predictions.jsonl": predictions},
        )
    version = registry.version("demo", variant.version)
    shown = registry.show("demo", variant.version)
    assert shown.measurements == {
        label: f'{{"label": "{label}"}}' for label in ("llama_cpp/gguf-Q8_0", "other/gguf-Q8_0")
    }
    assert registry.measurement_of(version, "unknown") is None
    registry.set_challenger(version, "other/gguf-Q8_0")
    assert (
        registry.measurement_of(registry.version("demo", "challenger"))
        == '{"label": "other/gguf-Q8_0"}'
    )
    models = registry.connection.client.search_logged_models([run.experiment_id])
    measured = {
        model.name: sorted(metric.key for metric in model.metrics)
        for model in models
        if model.metrics
    }
    assert measured == {
        name: ["exact_match", "peak_memory_bytes"] for name in ("gguf-Q8_0", "other-gguf-Q8_0")
    }
    assert (folder_of(registry, version) / "weighbridge" / "predictions.jsonl").exists()


@pytest.mark.parametrize(
    "labels",
    [
        ["llama_cpp/Q8_0(cache_type_v=f16)", "llama_cpp/Q8_0(cache_type_v=q8_0)"],
        ["llama_cpp(temperature=0.5,top_p=0.9)/Q8_0", "llama_cpp#2/Q8_0"],
        [f"vllm(lora_modules={{'a': '{'x' * 240}'}})/whole", "vllm/whole: 100 %"],
    ],
)
def test_candidates_that_differ_in_options_have_their_measurements(
    labels: list[str], registry: Registry, run: MlflowRun, chain: list[Version]
) -> None:
    for label in labels:
        registry.record_measurement(
            registry.version("demo", chain[3].version),
            label,
            run=run,
            document=f'{{"label": "{label}"}}',
            figures=[],
        )
    registry.set_challenger(chain[3], labels[1])
    shown = registry.show("demo", "challenger")
    assert shown.measurements == {label: f'{{"label": "{label}"}}' for label in labels}
    assert registry.measurement_of(shown.version) == f'{{"label": "{labels[1]}"}}'


def test_an_artifact_lost_from_the_store_comes_back_from_mlflow_and_is_proved(
    registry: Registry, workspace: Workspace, chain: list[Version], make: Make
) -> None:
    variant, artifact = chain[3], make("q8", "gguf", "model.gguf")
    shutil.rmtree(workspace.store.root)
    assert not workspace.store.is_whole(artifact)
    restored = registry.fetch(variant, workspace.store)
    assert restored.digest == artifact.digest
    assert workspace.store.is_whole(artifact)
    (folder_of(registry, chain[0]) / "weights.bin").unlink()
    with pytest.raises(Unavailable, match="registered is sha256:"):
        registry.fetch(chain[0], workspace.store)


def test_what_is_not_there_is_said_with_the_command_that_lists_what_is(
    registry: Registry, chain: list[Version]
) -> None:
    with pytest.raises(BadInput, match="weighbridge models demo"):
        registry.version("demo", "99")
    with pytest.raises(BadInput, match="no such model or alias"):
        registry.version("demo", "champion")
    with pytest.raises(BadInput, match="weighbridge models"):
        registry.versions("unknown")
    assert registry.names() == ["demo"]


def test_mlflows_page_finds_the_version_from_the_logged_model(
    registry: Registry, chain: list[Version]
) -> None:
    model = registry.connection.client.get_logged_model(chain[3].model_id)
    assert model.tags["mlflow.modelVersions"] == '[{"name": "demo", "version": "4"}]'
