"""vLLM: its command line, what it refuses, and what it is asked. The server itself:
test_vllm_server.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.serving.engines.vllm_command import own, words
from tests.stand_ins.http_server import Handler, Server
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.serving.engines import devices, vllm_requirements
from weighbridge.serving.engines.vllm import SpeculativeConfig, Vllm, VllmArgs


class VllmHandler(Handler):
    """Replies in vLLM's form: each prompt token with a log-probability of minus its id, beside a
    likelier one.
    """

    def do_GET(self) -> None:
        self.answer_json({"data": [{"id": "served-name"}]})

    def do_POST(self) -> None:
        body = json.loads(self.body())
        assert body["model"] == "served-name"
        if self.path == "/tokenize":
            assert body["add_special_tokens"] is False
            self.answer_json({"tokens": [len(word) for word in body["prompt"].split()]})
            return
        told = [
            {str(token): {"logprob": -token}, "999": {"logprob": -0.1}} for token in body["prompt"]
        ]
        if 13 in body["prompt"]:
            told.pop()
        self.answer_json({"choices": [{"text": "x", "prompt_logprobs": [None, *told[1:]]}]})


@pytest.fixture
def url() -> Iterator[str]:
    with Server(VllmHandler) as server:
        yield server.url


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
        "--enable-prompt-tokens-details",
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
    args = VllmArgs(device="cpu", **options)
    assert (Vllm(args).env().get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0") == together
    # Then the engine's process may begin as a copy of the server's.
    assert ("ForkProcess" in " ".join(own(args))) == together


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


def test_the_likeliest_tokens_are_those_at_the_completion(url: str) -> None:
    found = Vllm(VllmArgs()).token_distributions(url, [1, 2, 3], [4, 5], 20)
    assert found == [{4: -4.0, 999: -0.1}, {5: -5.0, 999: -0.1}]


def test_missing_log_probabilities_are_an_error(url: str) -> None:
    with pytest.raises(Unavailable, match="it gave 2 for 3 tokens"):
        Vllm(VllmArgs()).token_logprobs(url, [1, 2], [13])


def test_texts_are_cut_without_special_tokens_added(url: str) -> None:
    assert Vllm(VllmArgs()).tokenize(url, "one three") == [3, 5]
