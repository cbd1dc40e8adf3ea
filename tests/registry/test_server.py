"""The same against a real tracking server, and with artifacts in a real S3 service."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mlflow_server import mlflow_server
from tests.registry.conftest import Make
from tests.stand_ins.swift import Swift
from weighbridge.core.settings import Settings
from weighbridge.core.versions import own_version
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Binding, Dataset, LedgerEntry, MeasuredFigures, Registry

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_services")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of an MLflow server of its own, on SQLite, that takes artifacts over HTTP."""
    folder = tmp_path / "server"
    folder.mkdir()
    with mlflow_server(folder) as (url, _):
        yield url


def whole_release(registry: Registry, workspace: Workspace, make: Make) -> None:
    """What a release tells MLflow, twice, and what is read back."""
    data = Dataset("validation", "sha256:d")
    gguf = make("q8", "gguf", "model.gguf", "sub/tokenizer.json")
    for _ in range(2):
        with registry.release("demo", 1, params={"a": 1}, tags={"recipe": "demo"}) as release:
            base = registry.register("demo", "base", make("base"), run=release)
            with registry.stage(release, "finetune", 1) as run:
                run.log_dataset(data)
                run.log_step(1, {"loss": 1.0})
            variant = registry.register(
                "demo", "variant", gguf, run=release, parent=base, label="gguf-Q8_0"
            )
            with registry.stage(release, "weigh", 1) as run:
                registry.record_measurement(
                    variant,
                    "llama_cpp/gguf-Q8_0",
                    run=run,
                    document='{"a": 1}',
                    figures=[MeasuredFigures({"exact_match": 0.9}, data)],
                )
            registry.set_challenger(variant, "llama_cpp/gguf-Q8_0")
            registry.promote(variant)
    assert [one.label for one in registry.versions("demo")] == ["gguf-Q8_0", "base"]
    shown = registry.show("demo")
    assert shown.measurements == {"llama_cpp/gguf-Q8_0": '{"a": 1}'}
    assert shown.version.aliases == ("challenger", "champion")
    workspace.store.remove(gguf.digest)
    assert registry.fetch(shown.version, workspace.store).digest == gguf.digest
    rollout_and_place(registry)


def rollout_and_place(registry: Registry) -> None:
    """What a deployment tells MLflow, twice, and what is read back."""
    told = {
        "begin": {"target": "local", "model": "demo", "version": "2"},
        "end": {"outcome": "serving", "requests": 3, "evidence": {"latency_ratio": 1.5}},
    }
    lines = [
        LedgerEntry(rollout="r", n=n, at=1000.0 + n, event=key, fields=told[key])
        for n, key in enumerate(told)
    ]
    binding = Binding(target="local", model="demo", deploy={"port": 3000})
    for _ in range(2):
        registry.mirror(lines)
        registry.bind(binding)
    (rollout,) = registry.history("local")
    assert (rollout.outcome, rollout.requests, rollout.events) == ("serving", 3, tuple(lines))
    (bound,) = registry.bindings()
    assert bound == binding.model_copy(update={"since": bound.since, "written_by": own_version()})
    assert 0 < bound.since <= time.time()


def test_a_release_on_a_tracking_server_with_a_login_beside_a_proxy(
    server: str,
    workspace: Workspace,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    address = server.replace("://", "://user:p%40ss:w@rd@")
    registry = Registry.connect(Settings(home=workspace.settings.home, tracking_uri=address))
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "user"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "p@ss:w@rd"
    whole_release(registry, workspace, make)
    model = registry.connection.client.get_logged_model(registry.version("demo", "1").model_id)
    assert model.artifact_location.startswith("mlflow-artifacts:")
    assert capsys.readouterr().out == "", "a command's JSON goes there"


def test_a_release_with_artifacts_in_a_bucket(
    bucket: str, swift_server: Swift, workspace: Workspace, make: Make
) -> None:
    root = f"s3://{bucket}/mlflow"
    registry = Registry.connect(Settings(home=workspace.settings.home, artifact_root=root))
    whole_release(registry, workspace, make)
    keys = [
        entry["Key"] for entry in swift_server.client().list_objects_v2(Bucket=bucket)["Contents"]
    ]
    assert any(key.endswith("/artifacts/sub/tokenizer.json") for key in keys)
    assert not (workspace.settings.home / "mlartifacts").exists()
