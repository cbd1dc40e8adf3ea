"""The whole chain: a base model goes in, an endpoint that answers comes out."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.conftest import live_in
from tests.flows.chain import recipe, weighbridge, write, write_data
from tests.flows.chain_outcome import address, assert_nothing_runs, roles, stages
from tests.flows.conftest import Run
from weighbridge.configs.load import load
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.flows.plan import plan
from weighbridge.registry import Registry
from weighbridge.rollout.interrupted_rollouts import recover
from weighbridge.rollout.managed_target import open_target
from weighbridge.serving.targets.local import LocalRevision
from weighbridge.tasks.search.visits import read_grid

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left_serving")]


@dataclass(frozen=True)
class FirstRun:
    """A recipe of seconds that was run once, and everything it left; its endpoint is up."""

    folder: Path
    done: subprocess.CompletedProcess[str]

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def data(self) -> str:
        return f"file://{self.folder / 'data'}"


@pytest.fixture(scope="module")
def first_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstRun]:
    """Run the chain once for all tests that begin where a run has ended."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        live_in(folder, patch)
        data = write_data(folder / "data")
        path = write(folder / "recipe.yaml", recipe(f"file://{tiny_model}", f"file://{data}"))
        done = weighbridge("run", path)
    yield FirstRun(folder, done)
    with pytest.MonkeyPatch.context() as patch:
        live_in(folder, patch)
        weighbridge("down")
    assert_nothing_runs(folder)


@pytest.fixture
def there(first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> FirstRun:
    """The first run, with this test's commands in its home."""
    live_in(first_run.folder, monkeypatch)
    return first_run


@pytest.fixture
def stages_done(first_run: FirstRun, tmp_path: Path) -> FirstRun:
    """The first run's artifacts and finished stages in a home of this test's own.

    They are found by digest, so whatever a test changes about a recipe is done anew.
    """
    assert first_run.done.returncode == 0, first_run.done.stderr + first_run.done.stdout
    for name in ("store", "stages"):
        shutil.copytree(
            first_run.folder / "home" / name, tmp_path / "home" / name, copy_function=os.link
        )
    return first_run


def test_a_recipe_becomes_an_endpoint_and_a_second_run_reuses_every_stage_and_adds_keys(
    there: FirstRun,
) -> None:
    first, small = there.done, there.recipe
    assert first.returncode == 0, first.stderr + first.stdout
    assert f"serves at {address(small)}/v1" in first.stdout
    client = openai.OpenAI(base_url=f"{address(small)}/v1", api_key="none")
    question: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": "order 7"}
    ]
    whole = client.chat.completions.create(
        model="chain", messages=question, max_tokens=8, temperature=0
    )
    pieces = client.chat.completions.create(
        model="chain", messages=question, max_tokens=8, temperature=0, stream=True
    )
    assert [served.id for served in client.models.list()] == ["chain"]
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-4o", messages=question, max_tokens=8)
    assert refused.value.code == "model_not_found"
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    asked = weighbridge("ask", "chain", "order 7", "--max-tokens", "8")
    assert asked.stdout.strip("\n") == text.strip("\n")

    registry = Registry.connect(Settings())
    champion, challenger = registry.champion("chain"), registry.challenger("chain")
    assert champion is not None
    assert challenger is not None
    assert champion.version == challenger.version
    assert [version.role for version in registry.show("chain").lineage] == [
        "base",
        "adapter",
        "merged",
        "variant",
    ]
    assert roles() == ["adapter", "base", "merged", "variant", "variant"]
    assert registry.measurement_of(champion)
    grids = (there.folder / "home").rglob("weighing/grid.jsonl")
    points = [point for grid in grids for point in read_grid(grid)]
    assert "llama_cpp/gguf-Q8_0" in {point.setting["candidate"] for point in points}
    (rollout,) = registry.history("chain")
    assert (rollout.outcome, rollout.version) == ("serving", champion.version)

    with_keys = yaml.safe_load(small.read_text())
    keys = there.folder / "keys"
    keys.write_text(f"{hashlib.sha256(b'of the shop').hexdigest()}\n")
    with_keys["deploy"]["target"]["gateway"] = {"api_keys": str(keys)}
    again = weighbridge("run", write(there.folder / "keys.yaml", with_keys))
    assert again.returncode == 0, again.stderr + again.stdout
    assert "Authorization: Bearer" in again.stdout
    said = stages(again.stdout)
    assert list(said) == [
        "download",
        "finetune",
        "evaluate",
        "optimize",
        "weigh",
        "repeat",
        "select",
        "package",
        "deploy",
    ]
    assert all(text.startswith("reused: ") for text in said.values()), said
    assert roles() == ["adapter", "base", "merged", "variant", "variant"]
    assert len(registry.history("chain")) == 1
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert client.with_options(api_key="of the shop").models.list().data
    asked = weighbridge("ask", "chain", "order 7", "--max-tokens", "8")
    assert asked.stdout.strip("\n") == text.strip("\n")
    # Without the alias, MLflow, or a rollout: what a deployer does that is started anew.
    recover(Workspace())
    with pytest.raises(openai.AuthenticationError):
        client.models.list()

    forecast = json.loads(weighbridge("plan", small, "--json").stdout)
    assert [entry["action"] for entry in forecast[:-1]] == ["reuse"] * 8
    (target,) = json.loads(weighbridge("status", "--json").stdout)["targets"]
    assert target["healthy"]
    assert target["serving"]["version"] == target["wish"] == champion.version


def test_a_release_is_repeated_from_its_record_and_nothing_else_changes(
    there: FirstRun, warm: Run
) -> None:
    before = roles()
    done = warm("run", "--replay", "chain@champion", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    figures = {row["figure"]: row for row in json.loads(done.stdout)["figures"]}
    made = ("base", "adapter", "merged")
    assert [figures[name]["agreement"] for name in made] == ["equal"] * 3
    assert figures["exact match"]["agreement"] == "equal"
    assert figures["NLL, test split"]["agreement"] in ("equal", "inside")
    assert "requests/s at concurrency 2" in figures
    assert roles() == before
    assert len(Registry.connect(Settings()).history("chain")) == 1
    refused = warm("run", "--replay", "chain@1")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: replaying chain 1: it was never weighed")


def test_a_run_after_a_reboot_waits_until_the_version_that_serves_answers_again(
    there: FirstRun, warm: Run
) -> None:
    assert warm("down").returncode == 0
    again = warm("run", there.recipe)
    assert again.returncode == 0, again.stderr + again.stdout
    assert "serves already" in stages(again.stdout)["deploy"]
    assert httpx.get(f"{address(there.recipe)}/v1/models").status_code == 200


def test_a_fine_tune_worse_than_its_base_exits_3_and_serves_nothing(
    tmp_path: Path, tiny_model: Path, stages_done: FirstRun, warm: Run
) -> None:
    worse = recipe(
        f"file://{tiny_model}", stages_done.data, evaluate__gate="nll", evaluate__min_gain=100.0
    )
    done = warm("run", write(tmp_path / "worse.yaml", worse))
    assert done.returncode == 3
    assert "comparing the fine-tuned model with its base on nll" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "variant" not in roles()


def test_no_candidate_within_the_limits_exits_3_and_what_serves_goes_on(
    there: FirstRun, tmp_path: Path, tiny_model: Path, warm: Run
) -> None:
    assert there.done.returncode == 0
    before = Registry.connect(Settings()).champion("chain")
    strict = write(
        tmp_path / "strict.yaml",
        recipe(
            f"file://{tiny_model}",
            there.data,
            select__min_tokens_per_second=1e9,
            select__max_loss=None,
            select__max_nll_increase=None,
        ),
    )
    done = warm("run", strict)
    assert done.returncode == 3, done.stdout
    assert "no candidate is within the limits" in done.stderr
    assert "tokens/s" in done.stderr
    assert Registry.connect(Settings()).champion("chain") == before
    (target,) = json.loads(warm("status", "--json").stdout)["targets"]
    assert target["healthy"]


def test_the_winner_waits_as_challenger_where_the_recipe_says_never(
    tmp_path: Path, tiny_model: Path, stages_done: FirstRun, warm: Run
) -> None:
    waits = recipe(f"file://{tiny_model}", stages_done.data, deploy__promote="never")
    done = warm("run", write(tmp_path / "waits.yaml", waits))
    assert done.returncode == 0, done.stderr
    registry = Registry.connect(Settings())
    assert registry.champion("chain") is None
    assert registry.challenger("chain") is not None
    assert "nothing serves" in warm("status").stdout


def engine_address() -> str:
    """Address of the engine that serves, behind the gateway, which lets little of it through."""
    managed = open_target("chain", Workspace())
    assert managed is not None
    serving = managed.load_state().current
    assert isinstance(serving, LocalRevision)
    return f"http://127.0.0.1:{serving.port}"


def first_token(options: dict[str, Any]) -> tuple[int, float]:
    """Token and log-probability that the engine would go on with."""
    body = {
        "prompt": "order 7",
        "n_predict": 1,
        "n_probs": 1,
        "temperature": 0,
        "cache_prompt": False,
        **options,
    }
    (token,) = httpx.post(f"{engine_address()}/completion", json=body).json()[
        "completion_probabilities"
    ]
    return token["id"], token["logprob"]


def test_base_and_adapter_win_unmerged_and_serve(
    tmp_path: Path, tiny_model: Path, stages_done: FirstRun, warm: Run
) -> None:
    variant = {"kind": "gguf", "quantization": "F16", "adapter": True}
    path = write(
        tmp_path / "recipe.yaml",
        recipe(f"file://{tiny_model}", stages_done.data, optimize__variants=[variant]),
    )
    done = warm("run", path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "winner: llama_cpp/gguf-F16-adapter" in done.stdout
    (applied,) = httpx.get(f"{engine_address()}/lora-adapters").json()
    assert applied["scale"] == 1.0
    assert first_token({}) == first_token({"lora": [{"id": 0, "scale": 1.0}]})
    assert first_token({}) != first_token({"lora": [{"id": 0, "scale": 0.0}]})
    off = httpx.post(f"{address(path)}/lora-adapters", json=[{"id": 0, "scale": 0.0}])
    assert off.status_code == 404
    asked = warm("ask", "chain", "order 7", "--max-tokens", "8")
    assert asked.stdout.strip(), asked.stderr


def test_base_and_adapter_on_vllm_win_are_packaged_and_serve(
    tmp_path: Path, tiny_model: Path, stages_done: FirstRun, warm: Run
) -> None:
    """Weights without an adapter are in a Bento of vLLM in serving/engines/test_vllm_server.py."""
    engine = {
        "kind": "vllm",
        "device": "cpu",
        "dtype": "bfloat16",
        "max_model_len": 512,
        "enforce_eager": True,
        "cpu_omp_threads_bind": "nobind",
    }
    small = recipe(
        f"file://{tiny_model}",
        stages_done.data,
        optimize__variants=[{"kind": "adapter"}],
        weigh__engines=[engine],
    )
    path = write(tmp_path / "recipe.yaml", small)
    done = warm("run", path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "winner: vllm/adapter" in done.stdout
    [served, *_] = httpx.get(f"{address(path)}/v1/models").json()["data"]
    assert served["owned_by"] == "vllm"
    assert httpx.get(f"{address(path)}/version").status_code == 404
    asked = warm("ask", "chain", "order 7", "--max-tokens", "8")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()


def test_a_finished_model_is_weighed_and_served_without_a_fine_tune(
    stages_done: FirstRun, tmp_path: Path, tiny_model: Path, warm: Run
) -> None:
    document = recipe(
        f"file://{tiny_model}",
        stages_done.data,
        finetune="none",
        optimize__variants=[{"kind": "gguf", "quantization": "Q8_0"}],
    )
    del document["evaluate"]["min_gain"]
    path = write(tmp_path / "none.yaml", document)
    done = warm("run", path)
    assert done.returncode == 0, done.stderr + done.stdout
    said = stages(done.stdout)
    assert list(said) == [
        "download",
        "evaluate",
        "optimize",
        "weigh",
        "repeat",
        "select",
        "package",
        "deploy",
    ]
    assert said["download"].startswith("reused: ")
    assert "fine-tuned" not in done.stdout
    assert roles() == ["base", "variant"]
    assert [v.role for v in Registry.connect(Settings()).show("chain").lineage] == [
        "base",
        "variant",
    ]
    assert httpx.get(f"{address(path)}/v1/models").status_code == 200
    planned = plan(load(path)).stages
    assert [stage.stage for stage in planned] == list(said)
    assert [stage.action for stage in planned[:-1]] == ["reuse"] * 7
