"""What the plugin of an engine behind the shim asks of it."""

from collections.abc import Mapping, Sequence

from weighbridge.serving.openai_client import post


class ShimEngine:
    """What every server around the shim answers beyond OpenAI's API; engines inherit it."""

    def token_logprobs(
        self, url: str, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[float]:
        """Natural-log probability of every completion token, from one reading of both."""
        body = {"prompt": list(prompt), "completion": list(completion)}
        return [float(value) for value in post(f"{url}/logprobs", body)["logprobs"]]

    def tokenize(self, url: str, text: str) -> list[int]:
        """Token ids of a text: special tokens parsed, none added."""
        return [int(token) for token in post(f"{url}/tokenize", {"prompt": text})["tokens"]]

    def chat_tokens(self, url: str, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a chat, up to where the answer begins."""
        body = {"messages": [dict(message) for message in messages]}
        return [int(token) for token in post(f"{url}/tokenize", body)["tokens"]]
