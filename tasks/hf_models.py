"""Load Hugging Face models safely and quietly. Imports torch: import it late."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from weighbridge.core import machine
from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_FOR_USERS: Final = "mtime may not be reliable on this filesystem"
"""What the trainer says of checkpoints written within one second; it then goes by their numbers."""

BETWEEN_LIBRARIES: Final = ("`is_gradient_checkpointing` is deprecated",)
"""Beginnings of warnings about how one library calls another (PEFT 0.21 calls transformers by an
old name).
"""

BYTES_PER_THREAD: Final = 20_000_000
"""Weights that keep one thread busy."""


def device() -> str:
    """Return where models run on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    folder: Path, *, dtype: torch.dtype | str | None = None, to: str = ""
) -> PreTrainedModel:
    """Return the causal language model in a folder: safetensors alone, and no code that may lie
    beside it.

    On a CPU it computes in float32, on a GPU in its own type, unless `dtype` says otherwise.

    Raises:
        BadInput: its architecture is unknown, its weights are missing, pickled or damaged.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    to = to or device()
    doing = f"loading the model {folder.name}"
    try:
        model: PreTrainedModel
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or (torch.float32 if to == "cpu" else "auto"),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except SafetensorError as exc:
        raise BadInput(doing, f"its weights are damaged: {exc}", "download it again") from exc
    except (torch.OutOfMemoryError, MemoryError):
        raise
    # Each architecture refuses in its own way: a tensor of another shape, a padding token beyond
    # the vocabulary, a package that quantized weights need.
    except Exception as exc:
        wrong = one_line(exc, 300)
        if "ignore_mismatched_sizes" in wrong:  # transformers' own words tell of an option of its
            wrong = "a tensor has another shape than the configuration says"
        remedy = "give a causal language model in safetensors"
        if isinstance(exc, ImportError):
            remedy += ", whose weights no other package has quantized"
        raise BadInput(doing, wrong, remedy) from exc
    # transformers fills these with random numbers, and only warns.
    if missing := sorted(loading["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        wrong = f"its weights lack the tensor {missing[0]}{more}"
        raise BadInput(doing, wrong, "give the weights whole, and the configuration they are of")
    return model.to(to)


@contextmanager
def threads(model: Path) -> Iterator[int]:
    """Give torch as many threads as the model has work for, or as OMP_NUM_THREADS says, within the
    block.

    More threads would wait for each other: with two that spin on two busy cores, 40 training steps
    of a model of 10 MB took 85 s of CPU and more, with one 12 s.
    """
    previous = torch.get_num_threads()
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    useful = max(1, round(weights / BYTES_PER_THREAD))
    # torch has followed OMP_NUM_THREADS by itself: `previous` is its number then.
    count = previous if os.environ.get("OMP_NUM_THREADS") else min(machine.cores(), useful)
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(previous)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries within the block: progress bars, and what they say to each other."""
    import datasets
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    trainers = logging.get_logger("transformers.trainer_utils")
    # A filter and no higher level: other warnings of the same logger are for users.
    trainers.addFilter(_is_for_users)
    try:
        with warnings.catch_warnings():
            for message in BETWEEN_LIBRARIES:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        trainers.removeFilter(_is_for_users)
        if bars[0]:
            logging.enable_progress_bar()
        if bars[1]:
            datasets.enable_progress_bars()


def _is_for_users(record: LogRecord) -> bool:
    return NOT_FOR_USERS not in record.getMessage()
