"""ONNX Runtime: its command line, and a real server of a built model that must think what
transformers thinks.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import MACHINE_CACHE
from tests.serving.engines.shimmed import Shimmed
from weighbridge.core.errors import Unavailable
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines.onnx import Onnx, OnnxArgs


@pytest.fixture(scope="module")
def running(onnx_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # Pieces shorter than the prompts, so that reading and answering take turns.
    args = OnnxArgs(intra_op_num_threads=1, max_batch_size=3, chunk_size=8, alias="tiny")
    with serve(onnx_tiny, args, MACHINE_CACHE, tmp_path_factory.mktemp("log") / "log") as engine:
        yield engine


# The command


def test_options_are_onnx_runtimes_own() -> None:
    args = OnnxArgs(
        intra_op_num_threads=3, max_batch_size=5, context_length=300, allow_spinning=True
    )
    command = Onnx(args).command(Path("/models/one"), "127.0.0.1", 8080, Path("python"))
    assert command[:2] == ["python", "-I"]
    text = " ".join(command)
    for words in (
        "--model /models/one",
        "--intra-op-num-threads 3",
        "--max-batch-size 5",
        "--context-length 300",
    ):
        assert words in text
    assert "--allow-spinning" in command
    assert "--allow-spinning" not in Onnx(OnnxArgs()).command(
        Path("m"), "127.0.0.1", 1, Path("python")
    )


def test_only_open_options_are_tuned() -> None:
    given = OnnxArgs(intra_op_num_threads=3, max_batch_size=2)
    assert Onnx(given).tunings(8) == [given]
    tried = [args.intra_op_num_threads for args in Onnx(OnnxArgs()).tunings(2)]
    assert tried == [1, 2]


def test_room_is_made_for_the_load_where_it_is_left_open(tmp_path: Path) -> None:
    sized = Onnx(OnnxArgs(max_batch_size=2)).sized_for(tmp_path, 1024, 8)
    assert (sized.max_batch_size, sized.context_length) == (2, 1024)
    assert Onnx(OnnxArgs()).sized_for(tmp_path, 512, 8).max_batch_size == 8


# The server


class TestOnnx(Shimmed):
    engine = Onnx(OnnxArgs())


@pytest.mark.slow
def test_nothing_is_left_when_it_is_stopped(onnx_tiny: Path, tmp_path: Path) -> None:
    with serve(
        onnx_tiny, OnnxArgs(intra_op_num_threads=1), MACHINE_CACHE, tmp_path / "log"
    ) as engine:
        known = [
            psutil.Process(engine.process.pid),
            *psutil.Process(engine.process.pid).children(recursive=True),
        ]
    assert not [process for process in known if process.is_running()]


@pytest.mark.slow
def test_a_damaged_file_is_told_with_onnx_runtimes_own_words(
    onnx_tiny: Path, tmp_path: Path
) -> None:
    for path in onnx_tiny.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.onnx").unlink()
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with (
        pytest.raises(Unavailable, match=r"model\.onnx failed:Protobuf parsing failed"),
        serve(tmp_path, OnnxArgs(), MACHINE_CACHE, tmp_path / "log"),
    ):
        pass
