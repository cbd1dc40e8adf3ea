"""A stand-in for `text-generation-launcher` that speaks the API which TGI 3.3 documents. Standard
library only.

Its options, routes and replies are those of TGI's `docs/source/reference/launcher.md` and
`docs/openapi.json`.
"""

import argparse
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.stand_ins import openai

OPTIONS = (
    "model-id",
    "revision",
    "validation-workers",
    "sharded",
    "num-shard",
    "quantize",
    "speculate",
    "dtype",
    "kv-cache-dtype",
    "max-concurrent-requests",
    "max-best-of",
    "max-stop-sequences",
    "max-top-n-tokens",
    "max-input-tokens",
    "max-total-tokens",
    "waiting-served-ratio",
    "max-batch-prefill-tokens",
    "max-batch-total-tokens",
    "max-waiting-tokens",
    "max-batch-size",
    "cuda-graphs",
    "hostname",
    "port",
    "cuda-memory-fraction",
    "usage-stats",
)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The launcher's options; any other is refused, as the launcher does."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in OPTIONS:
        parser.add_argument(f"--{name}")
    return parser.parse_args(words)


class Handler(openai.Handler):
    """TGI's routes: OpenAI's as the other stand-in has them, and its own."""

    options: argparse.Namespace

    def do_GET(self) -> None:
        if self.path == "/info":
            self._json(200, self._info())
        else:
            super().do_GET()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self._json(200, tokens_of(body["inputs"]))
        elif len(tokens_of(prompt_of(body))) > self._info()["max_input_tokens"]:
            most = self._info()["max_input_tokens"]
            error = f"Input validation error: `inputs` must have less than {most} tokens"
            self._json(422, {"error": error, "error_type": "validation"})
        else:
            self._answer(self.server.enter(body), body)
            self.server.leave()

    def _info(self) -> dict[str, Any]:
        given = self.options
        return {
            "model_id": given.model_id,
            "max_concurrent_requests": int(given.max_concurrent_requests or 128),
            "max_input_tokens": int(given.max_input_tokens or 511),
            "router": "text-generation-router",
            "max_total_tokens": int(given.max_total_tokens or 512),
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "version": "3.3.6-dev0",
        }


def prompt_of(body: dict[str, Any]) -> str:
    """All texts of a request."""
    return (
        " ".join(message["content"] for message in body["messages"])
        if "messages" in body
        else body["prompt"]
    )


def tokens_of(text: str) -> list[dict[str, Any]]:
    """A token per word, after one that the tokenizer adds, which covers nothing."""
    found = [{"id": 1, "text": "", "start": 0, "stop": 0}]
    for word in text.split():
        start = text.index(word, int(str(found[-1]["stop"])))
        found.append(
            {"id": 100 + len(word), "text": word, "start": start, "stop": start + len(word)}
        )
    return found


def main() -> None:
    """Serve until killed."""
    options = parse()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    if not Path(options.model_id, "config.json").exists():
        sys.exit(f"Error: {options.model_id} is no model")
    Handler.options = options
    server = openai.Server((options.hostname, int(options.port)), openai.Behaviour())
    server.RequestHandlerClass = Handler
    with server:
        threading.Event().wait()


if __name__ == "__main__":
    main()
