"""A real vLLM server on the processor, which thinks what transformers thinks.

The one in the Bento begins as a user's does, all else with vLLM's libraries imported.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.adapters import greedy, reference
from tests.adapters import make as make_adapter
from tests.conftest import MACHINE_CACHE
from tests.serving import bentos
from tests.serving.engines.vllm_command import own
from tests.warm.engines import WarmEngines
from weighbridge.core.artifact import Artifact
from weighbridge.core.environments import ensure
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines.command_line import guarded
from weighbridge.serving.engines.vllm import FORKED, SpeculativeConfig, Vllm, VllmArgs
from weighbridge.serving.openai_client import Client, RequestRefused, post
from weighbridge.tasks.optimizers.adapter import Adapter, AdapterArgs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_engines")]
TEXTS = [
    "Hello, my kettle is broken.",
    '{"team": "billing", "product": "lamp"}',
    "naïve café 🙂 — 3.14\n\n\tend",
]
CHAT = [{"role": "user", "content": "order 7"}]
# Prints what vLLM's own parser makes of the options, out of the installed wheel.
PARSE = f"""{FORKED}
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
for line in sys.argv[1:]:
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(json.loads(line))
    validate_parsed_serve_args(args)
    print(json.dumps({{name: repr(value) for name, value in vars(args).items()}}))
"""


def test_vllms_own_parser_takes_every_option(tmp_path: Path, warm_engines: WarmEngines) -> None:
    everything = VllmArgs(
        dtype="bfloat16",
        quantization="compressed-tensors",
        max_model_len=512,
        max_num_seqs=8,
        max_num_batched_tokens=1024,
        gpu_memory_utilization=0.5,
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        kv_cache_dtype="fp8",
        enforce_eager=True,
        enable_prefix_caching=False,
        enable_lora=True,
        max_loras=2,
        shutdown_timeout=5,
        max_lora_rank=32,
        lora_modules={"one": "/adapters/one", "two": "/adapters/two"},
        served_model_name="it",
        speculative_config=SpeculativeConfig(method="eagle3", model="/models/small"),
    )
    commands = [
        own(args.model_copy(update={"device": device}))
        for args in (everything, VllmArgs())
        for device in ("cuda", "cpu")
    ]
    # The first four words start it on a GPU, and the folder follows; on a processor the folder is
    # an option.
    given = [json.dumps(command[4:]) for command in commands]
    python = ensure(Vllm.locks["cpu"], MACHINE_CACHE).python
    command = guarded([str(python), "-I", "-c", PARSE, *given], python)
    log, variables = tmp_path / "log", Vllm(VllmArgs(device="cpu")).env()
    with log.open("w") as output:
        parser = warm_engines.start("the parser", command, output, cwd=tmp_path, env=variables)
        assert parser.wait(300) == 0, log.read_text()
    lines = log.read_text().splitlines()
    parsed = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(parsed) == 4
    assert all("'/models/one'" in (args["model_tag"], args["model"]) for args in parsed)
    for args in parsed[:2]:
        assert (args["quantization"], args["max_lora_rank"], args["pipeline_parallel_size"]) == (
            "'compressed-tensors'",
            "32",
            "2",
        )
        assert "/models/small" in args["speculative_config"]
        assert "name='two', path='/adapters/two'" in args["lora_modules"]


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of the tiny model."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(tiny_model, folder / name, seed)
        for seed, name in enumerate(("first", "second"))
    }


@pytest.fixture(scope="module")
def unmerged(
    tiny_model: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """The tiny model and its first adapter as the optimizer lays them out."""
    workspace = Workspace(
        Settings(home=tmp_path_factory.mktemp("vllm") / "home", cache=MACHINE_CACHE)
    )
    base = workspace.store.add(tiny_model, "safetensors", adopt=False)
    adapter = workspace.store.add(adapters["first"], "peft", adopt=False)
    merged = base.model_copy(update={"origin": {"base": base.digest, "adapter": adapter.digest}})
    optimizer, out = Adapter(), tmp_path_factory.mktemp("unmerged")
    assert (
        optimizer.optimize(merged, base, AdapterArgs(), out, workspace)["adapter"] == adapter.digest
    )
    return workspace.store.add(out, optimizer.format)


@pytest.fixture(scope="module")
def running(
    unmerged: Artifact, tmp_path_factory: pytest.TempPathFactory, warm_engines: WarmEngines
) -> Iterator[Running]:
    """One server for all; when it is killed without a word, nothing of it is left."""
    args = VllmArgs(
        device="cpu",
        dtype="float32",
        max_model_len=512,
        enforce_eager=True,
        cpu_omp_threads_bind="nobind",
        enable_lora=True,
        allow_runtime_lora_updating=True,
    )
    with serve(
        unmerged.path, args, MACHINE_CACHE, tmp_path_factory.mktemp("log") / "log"
    ) as server:
        yield server
        family = [
            psutil.Process(server.process.pid),
            *psutil.Process(server.process.pid).children(recursive=True),
        ]
        assert len(family) > 1
        family[0].kill()
        _, alive = psutil.wait_procs(family[1:], timeout=60)
        assert not alive


def test_it_answers_whole_and_streamed_as_transformers_does(
    running: Running, tiny_model: Path, adapters: dict[str, Path]
) -> None:
    client = Client(running.url)
    answer = client.ask(CHAT, max_tokens=8)
    assert answer.text == greedy(tiny_model, CHAT, adapters["first"])
    assert answer.completion_tokens == 8
    pieces = list(client.stream(CHAT, max_tokens=8))
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1


def test_its_tokens_are_those_of_the_models_tokenizer(running: Running, tiny_model: Path) -> None:
    _, tokenizer = reference(tiny_model)
    for text in TEXTS:
        assert (
            Vllm(VllmArgs()).tokenize(running.url, text)
            == tokenizer(text, add_special_tokens=False)["input_ids"]
        )


def test_its_log_probabilities_are_those_of_transformers(
    running: Running, tiny_model: Path, adapters: dict[str, Path]
) -> None:
    import torch

    weights, tokenizer = reference(tiny_model, adapters["first"])
    ids = [*tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = weights(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = [float(logits[place - 1][ids[place]]) for place in range(3, len(ids))]
    wanted = pytest.approx(expected, abs=2e-3)
    # Several at once, while others are answered: an adapter once took the engine down.
    with ThreadPoolExecutor(4) as threads:
        asked = [
            threads.submit(Vllm(VllmArgs()).token_logprobs, running.url, ids[:3], ids[3:])
            for _ in range(4)
        ]
        answered = [threads.submit(Client(running.url).ask, CHAT, max_tokens=16) for _ in range(4)]
        assert [one.result() for one in asked] == [wanted] * 4
        assert all(one.result().completion_tokens == 16 for one in answered)


def test_adapters_answer_by_their_names_static_and_at_run_time(
    running: Running, tiny_model: Path, adapters: dict[str, Path], unmerged: Artifact
) -> None:
    def ask(name: str) -> str:
        body = {"model": name, "messages": CHAT, "max_tokens": 8, "temperature": 0}
        return str(
            post(f"{running.url}/v1/chat/completions", body)["choices"][0]["message"]["content"]
        )

    plain, first = greedy(tiny_model, CHAT), greedy(tiny_model, CHAT, adapters["first"])
    (folder,) = unmerged.path.glob("adapters/*")
    assert plain != first
    assert [ask(name) for name in ("model", f"model-{folder.name}", "model-base")] == [
        first,
        first,
        plain,
    ]
    with pytest.raises(RequestRefused, match="404"):
        ask("second")
    _load(running.url, "second", adapters["second"])
    assert ask("second") == greedy(tiny_model, CHAT, adapters["second"]) not in (plain, first)
    assert ask("model") == first


def _load(url: str, name: str, folder: Path) -> None:
    import httpx

    answer = httpx.post(
        f"{url}/v1/load_lora_adapter",
        json={"lora_name": name, "lora_path": str(folder)},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


def test_a_prompt_that_is_too_long_is_refused_and_it_goes_on(running: Running) -> None:
    with pytest.raises(RequestRefused, match="HTTP 400"):
        Client(running.url).ask("kettle " * 2000, max_tokens=8)
    assert Client(running.url).ask("kettle", max_tokens=2).completion_tokens == 2
    assert Client(running.url).model == "model"


def test_a_bento_of_weights_without_an_adapter_answers_from_its_own_environment(
    tiny_model: Path, workspace: Workspace, tmp_path: Path
) -> None:
    """One of a base and an adapter is packaged in flows/test_release.py."""
    model = workspace.store.add(tiny_model, "safetensors", adopt=False)
    args = VllmArgs(
        device="cpu",
        dtype="bfloat16",
        max_model_len=512,
        enforce_eager=True,
        cpu_omp_threads_bind="nobind",
    )
    with bentos.running(args, model, workspace, tmp_path / "log") as proof:
        for url in (proof.engine_url, proof.url):
            assert Client(url).ask(CHAT, max_tokens=4).completion_tokens == 4
