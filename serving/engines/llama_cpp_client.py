"""Ask a running llama-server what OpenAI's API does not say: tokens and their log-probabilities."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from weighbridge.core.errors import Unavailable
from weighbridge.serving.openai_client import SERVER_ERROR, RequestRefused, post

FORCED_AT_ONCE: Final = 256
"""Most tokens that one request forces."""
LIKELIEST: Final = (256, 8192, 10**7)
"""How many of the likeliest tokens to ask for: few first, in the end all."""
CERTAIN: Final = 1e9
"""A bias with which a token is drawn whatever else is likely."""


def token_distributions(
    url: str,
    prompt: Sequence[int],
    completion: Sequence[int],
    top: int,
    at_once: int = FORCED_AT_ONCE,
) -> list[dict[int, float]]:
    """Force the completion token by token and read what the model itself held likely at each.

    Args:
        url: Base address of the running server.
        prompt: Token ids before the completion.
        completion: Token ids to judge.
        top: How many of the likeliest tokens are told, beside the token itself.
        at_once: Most tokens that one request forces.

    Raises:
        Unavailable: The server does not answer, or does not do as it is told.
    """
    known: list[dict[int, float]] = []
    while len(known) < len(completion):
        before = [*prompt, *completion[: len(known)]]
        # The last token is usually the one that ends the generation, and no grammar can force
        # that.
        forced = list(completion[len(known) : -1][:at_once])
        known += _force(url, before, forced, top) if forced else []
        before = [*prompt, *completion[: len(known)]]
        known.append(_force_one(url, before, completion[len(known)], top))
    return known


def chat_tokens(url: str, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the token ids of a chat, up to where the answer begins."""
    body = {"messages": [dict(message) for message in messages]}
    return tokenize(url, str(post(f"{url}/apply-template", body)["prompt"]))


def tokenize(url: str, text: str) -> list[int]:
    """Return the token ids of a text: special tokens parsed, none added."""
    body = {"content": text, "add_special": False, "parse_special": True}
    return [int(token) for token in post(f"{url}/tokenize", body)["tokens"]]


def _force(url: str, before: list[int], tokens: list[int], top: int) -> list[dict[int, float]]:
    """Return what is likely at each of these tokens.

    Of the first ones only, where one among them ends the generation.
    """
    rules = " ".join(f"<[{token}]>" for token in tokens)
    try:
        answer = _complete(
            url, before, len(tokens), {"grammar": f"root ::= {rules}", "n_probs": top}
        )
    except RequestRefused as exc:
        if exc.status < SERVER_ERROR:
            raise
        # The server gives up where a grammar asks for a token that ends the generation: stop short
        # of it.
        half = len(tokens) // 2
        return _force(url, before, tokens[:half], top) if half else []
    known: list[dict[int, float]] = []
    # Not strict: the generation may have ended before the last of them.
    for entry, token in zip(answer, tokens, strict=False):
        if entry["id"] != token:
            break
        known.append(_likely(entry))
    return known


def _likely(entry: Mapping[str, Any]) -> dict[int, float]:
    """Return log-probabilities by token id, as the server tells them of one place: of the token
    itself and of the likeliest.
    """
    told = [*entry.get("top_logprobs", ()), entry]
    return {int(one["id"]): float(one["logprob"]) for one in told}


def _force_one(url: str, before: list[int], token: int, top: int) -> dict[int, float]:
    """Return what is likely at one token of any kind.

    A bias makes the token certain, and its log-probability does not show that.
    """
    answer = _complete(url, before, 1, {"logit_bias": [[token, CERTAIN]], "n_probs": top})
    if answer and answer[0]["id"] == token:
        return _likely(answer[0])
    return _look_up(url, before, token)


def _look_up(url: str, before: list[int], token: int) -> dict[int, float]:
    """Return what is likely at a token that ends within a character.

    The server does not show such a token by itself. So another one is forced in its place, and the
    wanted one is looked up among the likeliest of that place.
    """
    # Any token will do that ends with a whole character.
    substitute = tokenize(url, "a")[-1]
    for count in LIKELIEST:
        answer = _complete(
            url, before, 1, {"logit_bias": [[substitute, CERTAIN]], "n_probs": count}
        )
        known = _likely(answer[0]) if answer else {}
        if token in known:
            return known
    raise Unavailable(
        "asking llama_cpp for log-probabilities", f"it says nothing about token {token}"
    )


def _complete(
    url: str, prompt: list[int], count: int, options: dict[str, Any]
) -> list[dict[str, Any]]:
    body = {
        "prompt": prompt,
        "n_predict": count,
        "n_probs": 1,
        "temperature": 0,
        "samplers": ["temperature"],
        **options,
    }
    answer: list[dict[str, Any]] = post(f"{url}/completion", body).get(
        "completion_probabilities", []
    )
    return answer
