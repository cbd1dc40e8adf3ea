"""Load a model's configuration and tokenizer, and make tokens of rows: what `model_check` runs.

A process of its own, since nothing else bounds what a chat template or a tokenizer's pattern may
take: `python -P -m weighbridge.tasks.model_probe MODEL DATA ROWS EMBEDDINGS SECONDS BYTES REPORT`.
REPORT holds an error's three parts as JSON; nothing is written where nothing is wrong.
"""

import json
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import one_line, quoted
from weighbridge.tasks.model_files import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def probe(model: Path, data: Path, rows: int, embeddings: int) -> None:
    """Do once what training, evaluation and engines do with every row.

    Raises:
        BadInput: the model's files don't allow it.
    """
    from weighbridge.tasks.data import SPLITS, read_rows
    from weighbridge.tasks.encoding import encode, load_tokenizer

    _check_configuration(model)
    tokenizer = load_tokenizer(model)
    _check_vocabulary(tokenizer, embeddings)
    _render_all_templates(tokenizer)
    artifact = Artifact(digest="", format="jsonl", size=0).located_by(lambda _: data)
    for split in SPLITS:
        encode(tokenizer, read_rows(artifact, split, rows))


def _check_configuration(model: Path) -> None:
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    config = read_object("config.json", model / "config.json")
    doing, remedy = "checking config.json", "give a model whose architecture transformers has"
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        code = ", and its own code (auto_map) is never run" if "auto_map" in config else ""
        named = quoted(str(kind)[:80])
        wrong = f"transformers {__version__} does not have its model_type {named}{code}"
        raise BadInput(doing, wrong, remedy)
    try:
        AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    except MemoryError:
        raise
    except Exception as exc:  # each class of configuration refuses what it reads in its own way
        raise BadInput(doing, one_line(exc, 300), remedy) from exc


def _check_vocabulary(tokenizer: "PreTrainedTokenizerBase", embeddings: int) -> None:
    """Refuse tokens that the model has no embedding for: -1 says that their number is unknown."""
    highest = max(tokenizer.get_vocab().values(), default=0)
    if -1 < embeddings <= highest:
        raise BadInput(
            "checking the tokenizer",
            f"it has tokens up to number {highest}, and the model embeddings for {embeddings}",
            "resize the model's embeddings (resize_token_embeddings) and save it again",
        )


def _render_all_templates(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Render every chat template, those too that only a request for tools would choose."""
    templates = tokenizer.chat_template or {}
    if isinstance(templates, str):
        templates = {"default": templates}
    for template in templates.values():
        try:
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "a"}],
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except MemoryError:
            raise
        except Exception:
            continue


def main(
    model: str, data: str, rows: str, embeddings: str, seconds: str, size: str, report: str
) -> int:
    # None: the import system then finds no PyTorch, which nothing here needs, and which takes
    # three quarters of the time.
    sys.modules["torch"] = None  # type: ignore[assignment]
    import transformers  # noqa: F401 - before the limits: its imports are not the model's doing

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + float(seconds) + 1),) * 2)
    resource.setrlimit(resource.RLIMIT_AS, (int(size), int(size)))
    try:
        probe(Path(model), Path(data), int(rows), int(embeddings))
    except BadInput as exc:
        Path(report).write_text(json.dumps([exc.doing, exc.wrong, exc.remedy]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
