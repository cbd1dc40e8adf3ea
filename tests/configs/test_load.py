"""Reading recipes: every complaint names line, field and what to do."""

from pathlib import Path

import pytest

from tests.configs.recipes import VALID
from weighbridge.configs.load import load, parse
from weighbridge.configs.recipe import json_schema
from weighbridge.core.errors import BadInput

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_in_the_tree_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_DEMO", "/made")
    monkeypatch.setenv("WEIGHBRIDGE_BUCKET", "models")
    assert load(path).name


def test_recipe_round_trips_through_json() -> None:
    recipe = parse(VALID)
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe


def test_json_schema_shows_plugins_as_plain_alternatives() -> None:
    text = str(json_schema())
    assert "'discriminator'" not in text
    assert "Q8_0" in text
    assert "llama_cpp" in text


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("  r: 8", "  rr: 8", "line 8, finetune.rr: unknown key; did you mean 'r'?"),
        ("  r: 8", "  r: 0", "line 8, finetune.r: "),
        ("  r: 8", "  r: many", "line 8, finetune.r: "),
        ("finetune:", "fintune:", "line 7, fintune: unknown key; did you mean 'finetune'?"),
        ("name: demo", "name: De mo", "line 1, name: "),
        (
            "kind: gguf",
            "kind: ggf",
            "line 11, optimize.variants[0]: no optimizer is called 'ggf'; did you mean",
        ),
        ("quantization: Q8_0", "quantisation: Q8_0", "did you mean 'quantization'?"),
        ("kind: llama_cpp", "kind: lama_cpp", "did you mean 'llama_cpp'?"),
        (
            "kind: llama_cpp",
            "kind: onnx",
            ": none of the engines (onnx) serves gguf; add an engine or a variant",
        ),
        ("deploy:", "name: twice\ndeploy:", "'name' is there twice"),
        ("name: demo", "- demo", "reading recipe"),
        (
            "name: demo",
            "name: ${NOT_SET_ANYWHERE}",
            "environment variable NOT_SET_ANYWHERE is not set",
        ),
        ("name: demo", "name: ${HF_TOKEN}", "looks like a secret"),
        (
            "deploy:",
            "select: {metric: bleu}\ndeploy:",
            "select.metric 'bleu' is none of evaluate.metrics: exact_match, nll",
        ),
        (
            "deploy:",
            "select: {objective: cost}\ndeploy:",
            "select asks for a cost (objective cost), and there is no weigh.price_per_hour",
        ),
        (
            "kind: llama_cpp\n",
            "kind: llama_cpp\n  price_per_hour: {cpu: cheap}\n",
            "weigh.price_per_hour.cpu: Input should be a valid number",
        ),
        (
            "kind: llama_cpp\n",
            "kind: llama_cpp\n  price_per_hour: -1\n",
            "weigh.price_per_hour: Input should be greater than or equal to 0 (given: -1)",
        ),
        (
            "kind: llama_cpp\n",
            "kind: llama_cpp\n  price_per_hour: {gpu: 1}\n",
            "weigh.price_per_hour names the device 'gpu'; devices are: cpu, cuda",
        ),
        (
            "kind: llama_cpp\n",
            "kind: llama_cpp\n  price_per_hour: {cuda: 1}\nselect: {max_cost: 1}\n",
            "weigh.price_per_hour has none for llama_cpp, which runs on cpu",
        ),
        (
            "deploy:",
            "select: {concurrency: 3}\ndeploy:",
            "select.concurrency 3 is none of weigh.concurrency: 1, 4, 8",
        ),
        (
            "kind: llama_cpp\n",
            "kind: llama_cpp\n  concurrency: [1, 32]\nselect: {max_ttft_p95: 1}\n",
            "select.max_ttft_p95 takes 90 requests, none of them beyond it, after the warm-up, and "
            "weigh.requests 120 may leave 65 at concurrency 32; give 153, or",
        ),
        (
            "kind: llama_cpp\n",
            "kind: llama_cpp\n  requests: 80\nselect: {objective: latency}\n",
            "select.objective latency is a p95, which takes 72 requests after the warm-up, and "
            "weigh.requests 80 may leave 65 at concurrency 8; give 87, or",
        ),
        (
            "deploy:",
            "evaluate: {min_gain: 5}\ndeploy:",
            "evaluate.min_gain 5: exact_match lies between 0 and 1",
        ),
        (
            "deploy:",
            "deploy:\n  monitor: {floor: 95}",
            "deploy.monitor.floor 95: exact_match lies between 0 and 1",
        ),
        (
            "deploy:",
            "deploy:\n  monitor: {metric: rouge_l}",
            "deploy.monitor.metric 'rouge_l' is none of evaluate.metrics: exact_match, nll",
        ),
        (
            "deploy:",
            "deploy:\n  rollout: {step_seconds: 60, step_deadline: 30}",
            "step_deadline 30 is less than the least time of a step, step_seconds 60: none would",
        ),
        (
            "deploy:",
            "select: {floor: 95}\ndeploy:",
            "select.floor 95: exact_match lies between 0 and 1",
        ),
        (
            "deploy:",
            "select: {floor: 1}\ndeploy:",
            "select.floor 1 cannot be shown by any number of rows",
        ),
        (
            "kind: llama_cpp\n",
            "kind: llama_cpp\n  max_seconds: 1\n",
            "max_seconds 1 is less than the least time, seconds 2",
        ),
        (
            "deploy:",
            "select: {max_loss: 0}\ndeploy:",
            "max_loss 0 cannot be shown by any number of rows",
        ),
        (
            "deploy:",
            "evaluate: {answers: {refusals: []}}\nselect: {max_refused: 0.1}\ndeploy:",
            "select.max_refused: evaluate.answers.refusals is empty",
        ),
        (
            "deploy:",
            "evaluate: {answers: {format: any}}\nselect: {max_malformed: 0.1}\ndeploy:",
            "select.max_malformed: evaluate.answers asks for no format",
        ),
        (
            "deploy:",
            "select: {max_kl: 0.1}\ndeploy:",
            "select.max_kl: `kl` is none of evaluate.metrics",
        ),
        (
            "deploy:",
            "evaluate: {metrics: [{kind: nll}, {kind: kl}]}\nselect: {metric: kl}\ndeploy:",
            "select.metric kl says nothing of a model alone: limit it with select.max_kl",
        ),
        (
            "deploy:",
            "evaluate: {answers: {json_schema: /nowhere.json}}\ndeploy:",
            "evaluate.answers.json_schema: it cannot be read: No such file or directory",
        ),
    ],
)
def test_mistakes_are_one_line_with_place_and_remedy(
    before: str, after: str, expected: str
) -> None:
    with pytest.raises(BadInput) as caught:
        parse(VALID.replace(before, after))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_stage_is_named() -> None:
    with pytest.raises(BadInput, match="weigh: missing"):
        parse(VALID.replace("weigh:\n  engines:\n    - kind: llama_cpp\n", ""))


@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        (
            "  r: 8",
            "  learning_rate: .nan",
            "line 8, finetune.learning_rate: Input should be greater",
        ),
        ("  r: 8", "  r: yes", "line 8, finetune.r: must be a number (given: true)"),
        (
            "kind: llama_cpp",
            "kind: llama_cpp\n      threads: on",
            "line 16, weigh.engines[0].threads: must be a number (given: true)",
        ),
        (
            "  r: 8",
            "  num_train_epochs: .inf",
            "line 8, finetune.num_train_epochs: must be a finite number",
        ),
        (
            "  r: 8",
            "  weight_decay: 1e999",
            "line 8, finetune.weight_decay: must be a finite number",
        ),
        (
            "deploy:",
            "deploy:\n  rollout: {step_seconds: .inf}",
            "line 17, deploy.rollout.step_seconds: must be a finite number",
        ),
        (
            "port: 8300",
            "port: 8300\n    gateway: {queue_seconds: .inf}",
            "line 20, deploy.target.gateway.queue_seconds: must be a finite number",
        ),
        (
            "deploy:",
            "select: {floor: nan}\ndeploy:",
            "line 16, select.floor: must be a finite number (given: NaN)",
        ),
        (
            "deploy:",
            "run: {default: {pool: a, job_variables: {x: [.nan]}}}\ndeploy:",
            "line 16, run.default.job_variables.x[0]: must be a finite number",
        ),
        (
            "deploy:",
            "run: {default: {pool: a, job_variables: {x: !!binary /w==}}}\ndeploy:",
            "line 16, run.default.job_variables.x: must be text, not bytes",
        ),
        ("  r: 8", f"  seed: {1 << 32}", "line 8, finetune.seed: Input should be less than"),
        ("  r: 8", "  target_modules: '('", "line 8, finetune.target_modules: '(' is no regular"),
        (
            "deploy:",
            "evaluate: {metrics: [{kind: exact_match, regexes_to_ignore: ['(']}]}\ndeploy:",
            "'(' is no regular expression: missing )",
        ),
        (
            "kind: gguf\n      quantization: Q8_0",
            "kind: compressed_tensors\n      ignore: ['re:(']",
            "'(' is no regular expression",
        ),
    ],
)
def test_values_that_nobody_could_write_down_or_use_are_refused(
    before: str, after: str, place: str
) -> None:
    with pytest.raises(BadInput) as caught:
        parse(VALID.replace(before, after))
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_a_very_long_value_the_beginning_is_told() -> None:
    with pytest.raises(BadInput, match="line 1, name: ") as caught:
        parse(VALID.replace("name: demo", f"name: {'X' * 50_000}"))
    assert len(str(caught.value)) < 500


def test_of_very_many_mistakes_ten_are_told() -> None:
    many = "\n".join(f"x{number}: 1" for number in range(50))
    with pytest.raises(BadInput, match=r"and 40 more$"):
        parse(f"{VALID}{many}\n")


HOSTS = ["127.0.0.1 user root", "127.0.0.1\\n  user root", "::1%x user root", "unix@/s", "*", ""]


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        *(("port: 8300", f'port: 8300\n    host: "{host}"', "host") for host in HOSTS),
        ("name: demo", "name: weighbridge", "name"),
        ("deploy:", "deploy:\n  name: weighbridge-metrics", "name"),
        ("port: 8300", 'port: 8300\n    gateway: {tls: "/a\\nuser root"}', "tls"),
        ("port: 8300", 'port: 8300\n    gateway: {api_keys: "/a\\0"}', "api_keys"),
        ("- kind: llama_cpp", '- {kind: llama_cpp, alias: "--host=0.0.0.0"}', "alias"),
        ("- kind: llama_cpp", '- {kind: llama_cpp, alias: "a\\0"}', "alias"),
        ("file:///data", '"file:///data\\0"', "source"),
        ("file:///data", "~nobody-of-this-name/data", "nobody is called ~nobody-of-this-name here"),
        (
            "port: 8300",
            "port: 8300\n    gateway: {tls: ~nobody-of-this-name/a.pem}",
            "nobody is called ~nobody-of-this-name here",
        ),
        ("- kind: llama_cpp", "- {kind: sglang, 5: x}", "there is no option '5'"),
    ],
)
def test_values_are_nothing_more_than_what_they_are_for(
    before: str, after: str, field: str
) -> None:
    with pytest.raises(BadInput) as caught:
        parse(VALID.replace(before, after))
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::1", "localhost", "192.168.1.20"])
def test_addresses_are_taken(host: str) -> None:
    recipe = parse(VALID.replace("port: 8300", f'port: 8300\n    host: "{host}"'))
    assert recipe.deploy.target.model_dump()["host"] == host


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", b"name: \xff", "it is not UTF-8 text: invalid start byte at byte 6"),
        ("", b"", "is a directory"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_in_words(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"reading recipe .*: {words}$"):
        load(tmp_path / name)


def test_missing_file_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no such file; run: weighbridge init"):
        load(tmp_path / "none.yaml")


NO_FINETUNE = VALID.replace("finetune:\n  r: 8", "finetune: none")


def test_a_finished_model_needs_no_fine_tune() -> None:
    recipe = parse(NO_FINETUNE)
    assert recipe.finetune == "none"
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("quantization: Q8_0", "adapter: true", "gguf-Q8_0-adapter leaves the fine-tune's adapter"),
        ("kind: gguf\n      quantization: Q8_0", "kind: adapter", "adapter leaves the fine-tune's"),
        ("optimize:", "evaluate: {min_gain: 0.1}\noptimize:", "leave them out"),
        ("finetune: none", "finetune: nothing", "line 7, finetune: Input should be"),
    ],
)
def test_what_only_a_fine_tune_has_is_refused_without_one(
    before: str, after: str, expected: str
) -> None:
    text = NO_FINETUNE.replace(before, after)
    if "kind: adapter" in text:
        text = text.replace("kind: llama_cpp", "kind: vllm")
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_run_form_offers_no_fine_tune_as_a_choice() -> None:
    variants = json_schema()["properties"]["finetune"]["anyOf"]
    assert [variant.get("const") for variant in variants] == [None, "none"]
    assert variants[1]["title"] == "none"
