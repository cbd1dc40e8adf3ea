"""Parts of tokenizers as `tokenizer.json` describes them."""

from typing import Any


def bpe(*steps: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {
        "model": {"type": "BPE", **model},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)},
    }


def split(pattern: str, **changes: Any) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
        **changes,
    }


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True}
BYTES_AND_WORDS = {**BYTES, "use_regex": True}
