"""Rows of chats for optimizers that prove themselves on data."""

import json
from pathlib import Path

TEXTS = (
    "It's 12345 o'clock,  I'LL go",
    "naïve\n\n  tabs\tand 🙂 emoji",
    "x = {'a': [1, 22, 333]}  \r\n",
)


def write_rows(folder: Path, rows: int = 40) -> Path:
    """`train`, `validation` and `test` in a new folder."""
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        lines = [
            {
                "prompt": [
                    {"role": "user", "content": f"{split} {number}: {TEXTS[number % len(TEXTS)]}"}
                ],
                "completion": [{"role": "assistant", "content": f"order {number} is late"}],
            }
            for number in range(rows)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
