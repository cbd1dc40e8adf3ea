"""What every engine behind the shim has in common: its server answers the same routes."""

from collections.abc import Mapping, Sequence

from weighbridge.serving.engines.base import ArgsT, Engine
from weighbridge.serving.openai_client import post


class ShimEngine(Engine[ArgsT]):
    """An engine whose server is built with `weighbridge.serving.shim`."""

    def token_logprobs(
        self, url: str, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[float]:
        """Return the natural-log probabilities, from one reading of prompt and completion."""
        body = {"prompt": list(prompt), "completion": list(completion)}
        return [float(value) for value in post(f"{url}/logprobs", body)["logprobs"]]

    def tokenize(self, url: str, text: str) -> list[int]:
        """Return the token ids of a text: special tokens parsed, none added."""
        return [int(token) for token in post(f"{url}/tokenize", {"prompt": text})["tokens"]]

    def chat_tokens(self, url: str, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a chat, up to where the answer begins."""
        body = {"messages": [dict(message) for message in messages]}
        return [int(token) for token in post(f"{url}/tokenize", body)["tokens"]]
