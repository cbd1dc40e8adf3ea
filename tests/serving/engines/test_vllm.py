"""vLLM: its command line, what it refuses, and a real server on the processor that thinks what
transformers thinks.
"""

import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from tests.adapters import greedy, reference
from tests.adapters import make as make_adapter
from tests.conftest import MACHINE_CACHE
from weighbridge.core.artifact import Artifact
from weighbridge.core.environments import ensure
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines import devices, vllm_requirements
from weighbridge.serving.engines.vllm import SpeculativeConfig, Vllm, VllmArgs
from weighbridge.serving.openai_client import Client, RequestRefused, post
from weighbridge.tasks.optimizers.adapter import Adapter, AdapterArgs

TEXTS = [
    "Hello, my kettle is broken.",
    '{"team": "billing", "product": "lamp"}',
    "naïve café 🙂 — 3.14\n\n\tend",
]
CHAT = [{"role": "user", "content": "order 7"}]
# Prints what vLLM's own parser makes of the options, out of the installed wheel.
PARSE = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
for line in sys.stdin:
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(json.loads(line))
    validate_parsed_serve_args(args)
    print(json.dumps({name: repr(value) for name, value in vars(args).items()}))
"""


class Server(BaseHTTPRequestHandler):
    """Replies in vLLM's form: each prompt token with a log-probability of minus its id, beside a
    likelier one.
    """

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._reply({"data": [{"id": "served-name"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "served-name"
        if self.path == "/tokenize":
            assert body["add_special_tokens"] is False
            self._reply({"tokens": [len(word) for word in body["prompt"].split()]})
            return
        told = [
            {str(token): {"logprob": -token}, "999": {"logprob": -0.1}} for token in body["prompt"]
        ]
        if 13 in body["prompt"]:
            told.pop()
        self._reply({"choices": [{"text": "x", "prompt_logprobs": [None, *told[1:]]}]})

    def _reply(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def words(args: VllmArgs) -> list[str]:
    return Vllm(args).command(Path("/models/one"), "127.0.0.1", 8000, Path("/env/bin/python"))


def own(args: VllmArgs) -> list[str]:
    """What the guard starts."""
    command = words(args)
    return command[command.index("--") + 1 :]


def gpus(
    monkeypatch: pytest.MonkeyPatch, folder: Path, count: int, capability: tuple[int, int] = (9, 0)
) -> None:
    """A machine with this many."""
    for number in range(count):
        (folder / f"nvidia{number}").touch()
    (folder / "nvidiactl").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "DEVICES", folder)
    monkeypatch.setattr(vllm_requirements, "compute_capability", lambda: capability)


# The command


def test_options_are_vllms_own() -> None:
    args = VllmArgs(
        device="cuda",
        dtype="bfloat16",
        max_model_len=1024,
        enforce_eager=True,
        enable_prefix_caching=False,
        tensor_parallel_size=2,
        pipeline_parallel_size=3,
        gpu_memory_utilization=0.8,
        quantization="fp8",
    )
    command = words(args)
    assert own(args)[:5] == ["/env/bin/python", "-I", "/env/bin/vllm", "serve", "/models/one"]
    text = " ".join(command)
    for option in (
        "--port 8000",
        "--dtype bfloat16",
        "--max-model-len 1024",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--tensor-parallel-size 2",
        "--pipeline-parallel-size 3",
        "--gpu-memory-utilization 0.8",
        "--quantization fp8",
    ):
        assert option in text


def test_what_is_left_open_is_left_to_vllm() -> None:
    text = " ".join(words(VllmArgs(device="cuda")))
    for option in (
        "--quantization",
        "--gpu-memory-utilization",
        "--speculative-config",
        "--lora",
        "--max-model-len",
    ):
        assert option not in text


def test_guessing_ahead_is_told_as_json() -> None:
    command = words(
        VllmArgs(device="cuda", speculative_config=SpeculativeConfig(prompt_lookup_max=4))
    )
    defaults = json.loads(command[command.index("--override-generation-config") + 1])
    assert defaults == {"temperature": 0.0, "top_p": 1.0}
    told = json.loads(command[command.index("--speculative-config") + 1])
    assert told == {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}


def test_a_guessing_model_that_is_not_named_is_refused() -> None:
    with pytest.raises(ValidationError, match="eagle3 needs `model`"):
        SpeculativeConfig(method="eagle3")


def test_on_a_processor_the_rest_is_told_by_environment_variables() -> None:
    args = VllmArgs(device="cpu", cpu_kvcache_space=3, cpu_omp_threads_bind="0-1")
    assert "cpu" not in " ".join(words(args))
    told = Vllm(args).env()
    assert (told["VLLM_CPU_KVCACHE_SPACE"], told["VLLM_CPU_OMP_THREADS_BIND"]) == ("3", "0-1")


@pytest.mark.parametrize(
    ("options", "together"),
    [
        ({"cpu_omp_threads_bind": "nobind"}, True),
        ({"cpu_omp_threads_bind": "nobind", "tensor_parallel_size": 2}, False),
        ({"cpu_omp_threads_bind": "0-1"}, False),
        ({}, False),
    ],
)
def test_one_worker_whose_threads_are_bound_to_no_cores_needs_no_process_of_its_own(
    options: dict[str, Any], together: bool
) -> None:
    told = Vllm(VllmArgs(device="cpu", **options)).env()
    assert (told.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0") == together


def test_a_processor_s_memory_is_not_all_taken() -> None:
    assert Vllm(VllmArgs(device="cpu")).env()["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_adapters_need_lora_and_names_of_their_own() -> None:
    with pytest.raises(ValidationError, match="adapters need `enable_lora: true`"):
        VllmArgs(lora_modules={"one": "/adapters/one"})
    with pytest.raises(ValidationError, match="both called 'model'"):
        VllmArgs(enable_lora=True, lora_modules={"model": "/adapters/one"})


def test_an_adapter_in_the_models_folder_goes_by_the_models_name_and_one_of_its_own(
    tmp_path: Path,
) -> None:
    adapter = tmp_path / "adapters" / "0123456789ab"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(
        json.dumps({"r": 8, "rank_pattern": {"q_proj": 20}})
    )
    command = Vllm(VllmArgs(device="cpu")).command(tmp_path, "127.0.0.1", 8000, Path("python"))
    at = command.index("--lora-modules")
    assert command[at + 1 : at + 3] == [f"model={adapter}", f"model-0123456789ab={adapter}"]
    assert "--enable-lora" in command
    assert command[command.index("--served-model-name") + 1] == "model-base"
    assert command[command.index("--max-lora-rank") + 1] == "32"


# The device


def test_the_device_is_the_gpu_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, tmp_path, 0)
    assert Vllm(VllmArgs()).lock().name == "vllm_cpu.lock"
    gpus(monkeypatch, tmp_path, 1)
    assert Vllm(VllmArgs()).lock().name == "vllm.lock"
    assert Vllm(VllmArgs(device="cpu")).lock().name == "vllm_cpu.lock"


@pytest.mark.parametrize(
    ("visible", "count"),
    [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("1,0", 2), ("0,-1,1", 1), ("0,1,2", 2)],
)
def test_hidden_gpus_do_not_count(
    visible: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, tmp_path, 2)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.nvidia_devices() == count


def test_what_is_weighed_on_a_device_ships_for_that_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, tmp_path, 0)
    (tuned,) = Vllm(VllmArgs()).tunings(4)
    gpus(monkeypatch, tmp_path, 1)
    assert Vllm(tuned).device() == "cpu"


def test_a_missing_gpu_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, tmp_path, 0)
    with pytest.raises(Unavailable, match="there is no NVIDIA device here") as caught:
        Vllm(VllmArgs(device="cuda")).check()
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_more_gpus_than_there_are_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, tmp_path, 3)
    with pytest.raises(Unavailable, match="spread over 4 GPUs and there are 3"):
        Vllm(VllmArgs(tensor_parallel_size=2, pipeline_parallel_size=2)).check()


@pytest.mark.parametrize(
    ("device", "option", "value"),
    [
        ("cpu", "gpu_memory_utilization", 0.5),
        ("cuda", "cpu_kvcache_space", 2),
        ("cuda", "cpu_omp_threads_bind", "0"),
    ],
)
def test_an_option_of_the_other_device_is_refused(
    device: str, option: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match=f"`{option}` means nothing on {device}"):
        VllmArgs.model_validate({"device": device, option: value})
    gpus(monkeypatch, tmp_path, int(device == "cuda"))
    with pytest.raises(BadInput, match=f"`{option}` means nothing on {device}"):
        Vllm(VllmArgs.model_validate({option: value})).check()


def test_fp8_is_refused_where_the_device_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = {"weights": {"type": "float", "num_bits": 8}}
    config = {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": group},
        }
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for args, model in ((VllmArgs(quantization="fp8"), None), (VllmArgs(), tmp_path)):
        gpus(monkeypatch, tmp_path, 1, capability=(7, 0))
        with pytest.raises(
            Unavailable, match=r"FP8 needs a GPU of compute capability 7\.5, and this one has 7\.0"
        ):
            Vllm(args).check(model)
        gpus(monkeypatch, tmp_path, 1)
        Vllm(args).check(model)
    Vllm(VllmArgs(device="cpu")).check(tmp_path)
    with pytest.raises(
        Unavailable, match="its CPU build cannot make weights FP8 while it loads them"
    ):
        Vllm(VllmArgs(device="cpu", quantization="fp8")).check()


def test_a_failed_start_is_told_by_its_root_cause() -> None:
    log = (
        "(Worker pid=3) ERROR 11-26 23:08:54 [multiproc_executor.py:953] "
        "Traceback (most recent call last):\n"
        "(Worker pid=3) ERROR 11-26 23:08:54 [multiproc_executor.py:953] "
        "RuntimeError: no such kernel: [x]\n"
        "(APIServer pid=1) ERROR 11-26 23:08:56 [async_llm.py:906] "
        "vllm.v1.engine.exceptions.EngineDeadError: dead\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert Vllm(VllmArgs()).reason(log) == "RuntimeError: no such kernel: [x]"
    assert Vllm(VllmArgs()).reason("vllm: error: unrecognized arguments") is None


# What it says of texts


def test_log_probabilities_are_those_of_the_completion(url: str) -> None:
    assert Vllm(VllmArgs()).token_logprobs(url, [1, 2, 3], [4, 5]) == [-4.0, -5.0]


def test_missing_log_probabilities_are_an_error(url: str) -> None:
    with pytest.raises(Unavailable, match="it gave 2 for 3 tokens"):
        Vllm(VllmArgs()).token_logprobs(url, [1, 2], [13])


def test_texts_are_cut_without_special_tokens_added(url: str) -> None:
    assert Vllm(VllmArgs()).tokenize(url, "one three") == [3, 5]


# The engine itself, on the processor


@pytest.mark.slow
def test_vllms_own_parser_takes_every_option() -> None:
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
    given = "\n".join(json.dumps(command[4:]) for command in commands)
    python = ensure(Vllm.locks["cpu"], MACHINE_CACHE).python
    done = subprocess.run(
        [python, "-I", "-c", PARSE],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=Vllm(VllmArgs(device="cpu")).env(),
    )
    assert done.returncode == 0, done.stderr
    parsed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
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
def running(unmerged: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_its_tokens_are_those_of_the_models_tokenizer(running: Running, tiny_model: Path) -> None:
    _, tokenizer = reference(tiny_model)
    for text in TEXTS:
        assert (
            Vllm(VllmArgs()).tokenize(running.url, text)
            == tokenizer(text, add_special_tokens=False)["input_ids"]
        )


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_refused_and_it_goes_on(running: Running) -> None:
    with pytest.raises(RequestRefused, match="HTTP 400"):
        Client(running.url).ask("kettle " * 2000, max_tokens=8)
    assert Client(running.url).ask("kettle", max_tokens=2).completion_tokens == 2
    assert Client(running.url).model == "model"
