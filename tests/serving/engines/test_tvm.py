"""TVM: its command line, and a real server of a compiled model that must think what transformers
thinks.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import MACHINE_CACHE
from tests.serving.engines.inside import run_inside
from tests.serving.engines.shimmed import Shimmed
from tests.warm.engines import WarmEngines
from weighbridge.core.errors import Unavailable
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines.tvm import Tvm, TvmArgs
from weighbridge.serving.openai_client import Client


@pytest.fixture(scope="module")
def running(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, warm_engines: WarmEngines
) -> Iterator[Running]:
    # Pieces shorter than the prompts, so that reading and answering take turns.
    args = TvmArgs(max_batch_size=3, prefill_chunk_size=8, alias="tiny")
    with serve(tiny_model, args, MACHINE_CACHE, tmp_path_factory.mktemp("log") / "log") as engine:
        known = [
            psutil.Process(engine.process.pid),
            *psutil.Process(engine.process.pid).children(recursive=True),
        ]
        yield engine
    assert not [process for process in known if process.is_running()]


def test_options_are_tvms_own() -> None:
    args = TvmArgs(num_threads=3, max_batch_size=5, max_total_seq_len=300, prefill_chunk_size=64)
    command = Tvm(args).command(Path("/models/one"), "127.0.0.1", 8080, Path("python"))
    assert command[:2] == ["python", "-I"]
    text = " ".join(command)
    for words in (
        "--model /models/one",
        "--max-batch-size 5",
        "--context-length 300",
        "--chunk-size 64",
    ):
        assert words in text
    assert Tvm(args).env() == {"TVM_NUM_THREADS": "3"}
    assert Tvm(TvmArgs()).env() == {"TVM_NUM_THREADS": "1"}


def test_only_open_options_are_tuned() -> None:
    given = TvmArgs(num_threads=3, max_batch_size=2)
    assert Tvm(given).tunings(8) == [given]
    assert [args.num_threads for args in Tvm(TvmArgs()).tunings(2)] == [1, 2]
    sized = Tvm(TvmArgs()).sized_for(Path("model"), 1024, 8)
    assert (sized.max_batch_size, sized.max_total_seq_len) == (8, 1024)


class TestTvm(Shimmed):
    engine = Tvm(TvmArgs())


@pytest.mark.slow
@pytest.mark.parametrize("columns", [32, 41])
def test_its_matrix_product_is_numpys_for_any_number_of_rows_and_columns(
    columns: int, tmp_path: Path
) -> None:
    body = f"""
import numpy as np, tvm
from weighbridge.serving.engines.tvm_kernels import dense, packed
from weighbridge.serving.engines.tvm_llama import processor
function = dense(7, {columns}).with_attr("global_symbol", "main")
multiply = tvm.compile(tvm.IRModule({{"main": function}}), target=processor())["main"]
draw = np.random.default_rng(0)
weight = draw.normal(size=({columns}, 7)).astype("float32")
for rows in range(1, 10):
    given = draw.normal(size=(rows, 7)).astype("float32")
    result = tvm.runtime.tensor(np.full((rows, {columns}), np.nan, "float32"))
    multiply(tvm.runtime.tensor(given), tvm.runtime.tensor(packed(weight)), result)
    np.testing.assert_allclose(result.numpy(), given @ weight.T, rtol=1e-4, atol=1e-5)
print("equal")
"""
    done = run_inside(Tvm.locks["cpu"], body, tmp_path)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.slow
def test_the_longest_answers_fit_all_at_once(running: Running) -> None:
    """The pages of the cache are enough for every slot's whole context."""
    client = Client(running.url)
    with ThreadPoolExecutor(3) as pool:
        counts = list(
            pool.map(
                lambda n: client.ask("Hello " * n, max_tokens=600).completion_tokens, (3, 5, 7)
            )
        )
    assert all(count > 0 for count in counts)
    assert client.ask("Hello", max_tokens=3).completion_tokens == 3


@pytest.mark.slow
def test_a_model_that_is_no_plain_llama_is_refused_in_words(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    rope = {**(config.get("rope_parameters") or {}), "rope_type": "llama3"}
    (model / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    with (
        pytest.raises(
            Unavailable, match="builds plain Llamas, and rope_type of this one is something else"
        ),
        serve(model, TvmArgs(), MACHINE_CACHE, tmp_path / "log"),
    ):
        pass
