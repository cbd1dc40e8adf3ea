"""Run llama.cpp's own converter, and name the pre-tokenizers it knows by content but not by sight.

Runs in the gguf environment, not in ours: `python -P convert.py SOURCES MODEL OUT OUTTYPE NAME
REPORT ENDS [OPTIONS]`, where ENDS are token ids with commas between them: the tokens that end an
answer, the tokenizer's end of text first.

The converter recognizes a BPE tokenizer by a hash over token ids, so it refuses every one that was
trained at home. What decides is the pre-tokenizer: where its pattern is one that llama.cpp has,
that name is written. Whether the engine then cuts every text as the tokenizer does is for the
caller to prove.
"""

import json
import sys
from pathlib import Path
from typing import Any

REFUSED = 65
"""Exit status after which REPORT holds the reason for a person."""

# Letter by letter as the tokenizer.json of Llama 3 and Qwen 2 have them: they are compared as text.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN_2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST


class Refusal(Exception):
    """The model cannot be converted; the text is for a person."""


def name_of(tokenizer: dict[str, Any]) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a tokenizer.json.

    Raises:
        Refusal: llama.cpp has no pre-tokenizer with this pattern.
    """
    model, pre_tokenizer = tokenizer["model"], tokenizer["pre_tokenizer"] or {}
    steps = (
        pre_tokenizer["pretokenizers"]
        if pre_tokenizer.get("type") == "Sequence"
        else [pre_tokenizer]
    )
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    if model.get("type") != "BPE" or kinds[-1] != "ByteLevel" or last.get("add_prefix_space"):
        raise Refusal(
            f"its tokenizer is {model.get('type')} after {' and '.join(map(str, kinds))}, not "
            "byte-level BPE"
        )
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"
    if (
        kinds == ["Digits", "ByteLevel"]
        and steps[0].get("individual_digits")
        and last.get("use_regex", True)
    ):
        return "smollm"
    pattern = steps[0].get("pattern", {}).get("Regex")
    plain = (
        kinds == ["Split", "ByteLevel"]
        and steps[0].get("behavior") == "Isolated"
        and not steps[0].get("invert")
    )
    if plain and not last.get("use_regex", True):
        if pattern == _LLAMA_3:
            # The same pattern under two names: only `llama-bpe` takes a whole word of the
            # vocabulary past the merges.
            return "llama-bpe" if model.get("ignore_merges") else "smaug-bpe"
        if pattern == _QWEN_2 and not model.get("ignore_merges"):
            return "qwen2"
    shown = pattern or " and ".join(map(str, kinds))
    raise Refusal(f"llama.cpp has no pre-tokenizer like this tokenizer's: {shown}")


def begins(tokenizer: Any) -> bool | None:
    """Whether a prompt has to begin with the BOS token: as the chat template says, else as plain
    texts do.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return False
    plain = list(tokenizer("a")["input_ids"][:1]) == [bos]
    if not plain or not tokenizer.chat_template:
        return plain
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except (
        Exception
    ):  # a template may refuse anything, in its own words; then the model's own setting stands
        return None
    return str(text).startswith(tokenizer.bos_token)


def lighten() -> None:
    """Hide PyTorch from transformers: half of the converter's CPU time is imports it never uses.

    The converter itself takes PyTorch, and from transformers nothing but tokenizers and
    configurations.
    """
    from transformers.utils import import_utils

    is_available = import_utils._is_package_available

    def without_torch(name: str, return_version: bool = False) -> Any:
        if name != "torch":
            return is_available(name, return_version)
        return (False, "N/A") if return_version else False

    import_utils._is_package_available = without_torch
    import_utils.is_torch_available.cache_clear()


def write_ends(writer: Any, ends: list[int]) -> None:
    """Write the tokens at which the engine stops.

    Raises:
        Refusal: they are more than a file can name.
    """
    import gguf

    keys = gguf.Keys.Tokenizer
    # llama.cpp stops at each of these, and uses the three for infilling for nothing else in a chat.
    names = [keys.EOS_ID, keys.EOT_ID, keys.EOM_ID, keys.FIM_PAD_ID, keys.FIM_REP_ID]
    if len(ends) > len(names):
        raise Refusal(f"{len(ends)} tokens end an answer, and a GGUF names at most {len(names)}")
    for name, end in zip(names, ends, strict=False):
        # The writer warns of a key that is set twice.
        writer.kv_data[0].pop(name, None)
        writer.add_uint32(name, end)


def patch(facts: dict[str, str], ends: list[int]) -> None:
    """Teach the converter's base class what this module knows."""
    import gguf
    from conversion.base import TextModel  # type: ignore[import-not-found]  # in the sources

    recognize, finish = TextModel.get_vocab_base_pre, TextModel.prepare_metadata
    seen: list[Any] = []

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        seen.append(tokenizer)
        try:
            facts["pre_tokenizer"] = recognize(self, tokenizer)
        except NotImplementedError:
            facts["pre_tokenizer"] = name_of(json.loads(tokenizer.backend_tokenizer.to_str()))
            facts["pre_tokenizer_known_by"] = "its pattern"
        return facts["pre_tokenizer"]

    def prepare_metadata(self: Any, vocab_only: bool) -> None:
        finish(self, vocab_only)
        add_bos = begins(seen[-1]) if seen else None
        if add_bos is not None:
            # llama.cpp's own default depends on the pre-tokenizer's name, which may be one we lent.
            key = gguf.Keys.Tokenizer.ADD_BOS
            # The writer warns of a key that is set twice.
            self.gguf_writer.kv_data[0].pop(key, None)
            self.gguf_writer.add_bool(key, add_bos)
        write_ends(self.gguf_writer, ends)

    TextModel.get_vocab_base_pre = get_vocab_base_pre
    TextModel.prepare_metadata = prepare_metadata


def distrust() -> None:
    """Have transformers run no code that a model names: the converter would let it."""
    from transformers import AutoConfig, AutoTokenizer

    for auto in (AutoConfig, AutoTokenizer):
        # Bound to the default of this very turn of the loop.
        def from_pretrained(*args: Any, _load: Any = auto.from_pretrained, **options: Any) -> Any:
            return _load(*args, **{**options, "trust_remote_code": False})

        auto.from_pretrained = from_pretrained


def main(
    sources: str,
    model: str,
    out: str,
    outtype: str,
    name: str,
    report: str,
    ends: str,
    *options: str,
) -> int:
    sys.path[:0] = [sources, str(Path(sources, "gguf-py"))]
    facts: dict[str, str] = {}
    lighten()
    distrust()
    patch(facts, [int(end) for end in ends.split(",")])
    import convert_hf_to_gguf  # type: ignore[import-not-found]  # in the sources

    sys.argv = [
        "convert_hf_to_gguf.py",
        model,
        "--outfile",
        out,
        "--outtype",
        outtype,
        "--model-name",
        name,
        *options,
    ]
    try:
        convert_hf_to_gguf.main()
    except Refusal as exc:
        Path(report).write_text(str(exc))
        return REFUSED
    except SystemExit as exc:
        # How a dry run ends.
        if exc.code:
            raise
    Path(report).write_text(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
