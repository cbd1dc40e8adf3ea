"""A Hugging Face tokenizer and its chat template without transformers, for engines whose
environment is small.

Runs inside an engine's environment, on `tokenizers` and `jinja2`. An optimizer proves, text by
text, that it cuts as transformers does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Special tokens that templates write by name."""


class HfTokenizer:
    """The tokenizer in a folder as transformers saves it."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # A file saved after training carries the padding and the truncation of that.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        config = _read(folder / "tokenizer_config.json")
        self._names = {name: token for name in NAMED if (token := _content(config.get(name)))}
        source = _template(folder, config)
        self._template = _environment().from_string(source) if source else None
        self.ends = _ends(folder)

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of a text, special tokens in it parsed; `special`: with what belongs
        in front of a plain prompt.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a chat, up to where the answer begins.

        Raises:
            ValueError: there is no template, or it refuses the messages.
        """
        if self._template is None:
            raise ValueError("the model has none")
        try:
            text = self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **self._names,
            )
        except Exception as exc:  # it is a program: a range too long, a name that is not there, …
            raise ValueError(str(exc) or type(exc).__name__) from exc
        return self.tokenize(text, special=False)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return Jinja as transformers sets it up: templates are written for that."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    # What templates call; transformers' own `tojson` escapes no HTML, and Jinja's does.
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Return the chat template, from a file of its own or the configuration; None where there is
    none.
    """
    if (template_file := folder / "chat_template.jinja").exists():
        return template_file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        # Several by name: for tools, for retrieval.
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return None if template is None else str(template)


def _ends(folder: Path) -> frozenset[int]:
    """Return the tokens that end an answer, as `generate` of transformers knows them."""
    for name in ("generation_config.json", "config.json"):
        ends = _read(folder / name).get("eos_token_id")
        if ends is not None:
            return frozenset(ends if isinstance(ends, list) else [ends])
    return frozenset()


def _content(token: Any) -> str:
    """Return a special token's text, which is written plainly or as an object with options."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _read(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one where there is no such file."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return values
