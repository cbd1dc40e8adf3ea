"""What the plugin of an engine behind the shim asks of it."""

from collections.abc import Mapping, Sequence

from serving.client import post


def tokenize(url: str, text: str) -> list[int]:
    """Token ids of a text: special tokens parsed, none added."""
    return [int(token) for token in post(f"{url}/tokenize", {"prompt": text})["tokens"]]


def chat_tokens(url: str, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a chat, up to where the answer begins."""
    body = {"messages": [dict(message) for message in messages]}
    return [int(token) for token in post(f"{url}/tokenize", body)["tokens"]]


def token_logprobs(url: str, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Natural-log probability of every completion token."""
    body = {"prompt": list(prompt), "completion": list(completion)}
    return [float(value) for value in post(f"{url}/logprobs", body)["logprobs"]]
