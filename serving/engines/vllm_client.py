"""Ask a running vLLM what OpenAI's API does not say: tokens and their log-probabilities."""

from collections.abc import Mapping, Sequence
from typing import Final

from weighbridge.core.errors import Unavailable
from weighbridge.serving.openai_client import Client, get, post

CERTAIN: Final = 100
"""The highest bias that the API takes for a token: no other one is drawn beside it."""


def token_logprobs(url: str, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Return the log-probability of every token of the completion, read as part of a prompt.

    Under an adapter each token is forced by itself: vLLM 0.32's engine dies where it reads
    log-probabilities of a prompt for one request while it answers another.

    Raises:
        Unavailable: The server does not answer, or leaves tokens out.
    """
    tokens, name = [*prompt, *completion], _model_name(url)
    positions = range(len(prompt), len(tokens))
    if _is_adapter(url, name):
        return [_forced(url, name, tokens[:position], tokens[position]) for position in positions]
    known = _read(url, name, tokens, 1)
    return [known[position][tokens[position]] for position in positions]


def token_distributions(
    url: str, prompt: Sequence[int], completion: Sequence[int], top: int
) -> list[dict[int, float]]:
    """Return log-probabilities by token id at every token of the completion, read as part of a
    prompt.

    Raises:
        NotImplementedError: The model has an adapter; see `token_logprobs`.
        Unavailable: The server does not answer, or leaves tokens out.
    """
    tokens, name = [*prompt, *completion], _model_name(url)
    if _is_adapter(url, name):
        raise NotImplementedError("vllm under an adapter tells no likeliest tokens at given ones")
    return _read(url, name, tokens, top)[len(prompt) :]


def _read(url: str, name: str, tokens: list[int], top: int) -> list[dict[int, float]]:
    """Return what the server holds likely at each token of a prompt; nothing at the first."""
    body = {
        "model": name,
        "prompt": tokens,
        "max_tokens": 1,
        "temperature": 0,
        # However few of the likeliest are asked for, the token itself is told as well.
        "prompt_logprobs": top,
    }
    prompt_logprobs = post(f"{url}/v1/completions", body)["choices"][0].get("prompt_logprobs") or []
    if len(prompt_logprobs) != len(tokens):
        wrong = f"it gave {len(prompt_logprobs)} for {len(tokens)} tokens"
        raise Unavailable("asking vllm for log-probabilities", wrong)
    return [
        {int(token): float(entry["logprob"]) for token, entry in (known or {}).items()}
        for known in prompt_logprobs
    ]


def tokenize(url: str, text: str) -> list[int]:
    """Return the token ids of a text: special tokens parsed, none added."""
    body = {"model": _model_name(url), "prompt": text, "add_special_tokens": False}
    return [int(token) for token in post(f"{url}/tokenize", body)["tokens"]]


def chat_tokens(url: str, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the token ids of a chat, up to where the answer begins."""
    body = {
        "model": _model_name(url),
        "messages": [dict(message) for message in messages],
        # The template writes every special token itself.
        "add_special_tokens": False,
        "add_generation_prompt": True,
    }
    return [int(token) for token in post(f"{url}/tokenize", body)["tokens"]]


def _model_name(url: str) -> str:
    """Return the name that requests must give: vLLM refuses any other."""
    return Client(url).models()[0]


def _is_adapter(url: str, name: str) -> bool:
    models = get(f"{url}/v1/models")["data"]
    # vLLM gives an adapter its base's name as `parent`.
    return any(model["id"] == name and model.get("parent") for model in models)


def _forced(url: str, name: str, before: Sequence[int], token: int) -> float:
    """Return the log-probability of one token, made certain by a bias that its log-probability
    does not show.
    """
    body = {
        "model": name,
        "prompt": list(before),
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 0,
        "logit_bias": {str(token): CERTAIN},
        # A text does not say which token it came from.
        "return_token_ids": True,
    }
    choice = post(f"{url}/v1/completions", body)["choices"][0]
    if choice.get("token_ids") != [token]:
        wrong = f"it gave {choice.get('token_ids')} for token {token}"
        raise Unavailable("asking vllm for log-probabilities", wrong)
    return float(choice["logprobs"]["token_logprobs"][0])
