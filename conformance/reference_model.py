"""The conformance model and what transformers answers with it, made once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from weighbridge.conformance import model
from weighbridge.conformance.model import CONTEXT, LESSONS, prompt_of
from weighbridge.conformance.reference import Question, Reference, Scored, Tokens
from weighbridge.core import machine
from weighbridge.core.environments import one_at_a_time
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.formatting import quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS: Final = (
    "Hello, my kettle is broken.",
    "  two  spaces and a tab\t.\n\n\nend",
    "naïve café 🙂 – 日本語",
    "1234567 3.14 1e-9",
    "<|im_start|>user\nhi<|im_end|>\n",
    "don't we'll I'M",
    '{"key": [1, "two", null]}',
    "\u00a0\u200b\u0301e\u0301",
)
"""What tokenizers get wrong: spaces, characters of several tokens, special tokens, accents."""
SCORED: Final = ("Count to ten.", "one two ten seven! Kettles: 🙂")
"""Completions to judge: one that was taught, and one that nobody would say."""


def model_folder(cache: Path) -> Path:
    """Return the folder of `model`, `data` and `reference.json`.

    They are made if they are not there, by one process at a time.
    """
    folder = cache / "models" / f"conformance-{_digest()}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder, "making the conformance model"):
            if not folder.exists():
                _make(folder)
    return folder


def _digest() -> str:
    sources = b"".join(Path(module).read_bytes() for module in (__file__, model.__file__))
    # Another release may compute, or save, in another way.
    libraries = " ".join(version(name) for name in ("torch", "transformers"))
    return hashlib.sha256(sources + libraries.encode()).hexdigest()[:16]


def _make(folder: Path) -> None:
    # Before torch is loaded, which reads it once.
    machine.let_waiting_threads_sleep()
    from weighbridge.tasks.hf_models import quiet

    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        # `mkdtemp` makes a folder that nobody else may enter, and it becomes the model's own.
        scratch.chmod(0o755)
        (scratch / "model").mkdir()
        with quiet():
            model.make(scratch / "model")
            reference = _reference(scratch / "model")
        (scratch / "reference.json").write_text(
            reference.model_dump_json(indent=1), encoding="utf-8"
        )
        _write_rows(scratch / "data")
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_rows(folder: Path) -> None:
    """Write the lessons as canonical data, which optimizers calibrate and prove with."""
    folder.mkdir()
    rows = [
        {"prompt": lesson.messages, "completion": [{"role": "assistant", "content": lesson.answer}]}
        for lesson in LESSONS
        if lesson.messages
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def _reference(folder: Path) -> Reference:
    from transformers import AutoModelForCausalLM

    from weighbridge.tasks.encoding import Encoded, load_tokenizer
    from weighbridge.tasks.generation import logprobs

    tokenizer: Any = load_tokenizer(folder)
    # As exact as it goes: what engines round to is held against it.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    prompt = _ids(tokenizer, prompt_of(tokenizer, LESSONS[0]))
    rows = [Encoded(prompt, _ids(tokenizer, text)) for text in SCORED]
    scored = zip(rows, logprobs(model, rows, batch_size=1), strict=True)
    return Reference(
        made_by=f"transformers {version('transformers')}",
        context=CONTEXT,
        texts=[Tokens(text=text, ids=_ids(tokenizer, text)) for text in TEXTS],
        questions=_questions(model, tokenizer),
        scored=[
            Scored(prompt_ids=row.prompt, ids=row.completion, logprobs=values)
            for row, values in scored
        ],
    )


def _questions(model: Any, tokenizer: PreTrainedTokenizerFast) -> list[Question]:
    """Return every lesson with the answer that transformers gives: it must be the one taught."""
    import torch

    questions = []
    for lesson in LESSONS:
        prompt = _ids(tokenizer, prompt_of(tokenizer, lesson))
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            generated = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=CONTEXT - len(prompt),
            )
        answer = [
            token
            for token in generated[0, len(prompt) :].tolist()
            if token != tokenizer.eos_token_id
        ]
        text = str(tokenizer.decode(answer))
        if text != lesson.answer and not (lesson.endless and text.startswith(lesson.answer)):
            raise WeighbridgeError(
                "making the conformance reference",
                f"'{lesson.name}' is answered {quoted(text[:80])}",
            )
        questions.append(
            Question(
                name=lesson.name,
                prompt=lesson.messages or str(lesson.prompt),
                prompt_ids=prompt,
                answer=text,
                answer_ids=answer,
            )
        )
    return questions


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
