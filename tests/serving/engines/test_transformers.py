"""transformers: its command line, and how it draws a token. The server itself is held to the
conformance suite.
"""

from pathlib import Path

import pytest
import torch

from tests.serving import bentos
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.transformers import Transformers, TransformersArgs
from weighbridge.serving.engines.transformers_server import draw
from weighbridge.serving.openai_client import Client
from weighbridge.serving.shim.protocol import Sampling

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0])


def drawn(times: int = 300, **options: float) -> set[int]:
    """Every token that comes up."""
    generator = torch.Generator().manual_seed(1)
    sampling = Sampling(max_tokens=1, **options)  # type: ignore[arg-type]  # numbers of either kind
    return {draw(LOGITS, sampling, generator) for _ in range(times)}


def test_options_are_those_of_from_pretrained() -> None:
    args = TransformersArgs(dtype="bfloat16", attn_implementation="eager", threads=3)
    command = Transformers(args).command(
        Path("/models/one"), "127.0.0.1", 8000, Path("/env/bin/python")
    )
    assert command[:2] == ["/env/bin/python", "-I"]
    text = " ".join(command)
    for words in (
        "--model /models/one",
        "--dtype bfloat16",
        "--attn-implementation eager",
        "--threads 3",
    ):
        assert words in text
    assert "--max-length" not in text


def test_only_open_threads_of_the_processor_are_tuned() -> None:
    tunings = Transformers(TransformersArgs()).tunings(4)
    assert [args.threads for args in tunings] == [2, 4]
    for args in (TransformersArgs(threads=3), TransformersArgs(device="cuda")):
        assert Transformers(args).tunings(4) == [args]


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"temperature": 0.0}, {1}),
        ({"temperature": 1.0}, {0, 1, 2, 3}),
        ({"temperature": 1.0, "top_k": 2}, {1, 2}),
        ({"temperature": 1.0, "top_k": 1}, {1}),
        ({"temperature": 1.0, "top_p": 0.7}, {1, 2}),
        ({"temperature": 1.0, "top_p": 0.0}, {1}),
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.7}, {1}),
    ],
)
def test_what_can_be_drawn(options: dict[str, float], tokens: set[int]) -> None:
    assert drawn(**options) == tokens


def test_equal_seeds_draw_alike() -> None:
    sampling = Sampling(max_tokens=1, temperature=2.0)
    one, two = (
        [draw(LOGITS, sampling, generator) for _ in range(50)] for generator in map(_seeded, (5, 5))
    )
    assert one == two


def _seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.slow
def test_a_bento_of_it_answers_from_its_own_environment(
    tiny_model: Path, workspace: Workspace, tmp_path: Path
) -> None:
    model = workspace.store.add(tiny_model, "safetensors", adopt=False)
    with bentos.running(TransformersArgs(threads=1), model, workspace, tmp_path / "log") as proof:
        for url in (proof.engine_url, proof.url):
            answer = Client(url).ask([{"role": "user", "content": "hello"}], max_tokens=4)
            assert answer.completion_tokens == 4
