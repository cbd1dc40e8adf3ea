"""The shim over HTTP: OpenAI's own client understands it, and nothing a client does breaks it."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web

from tests.serving.shim.made import Bytes
from tests.waiting import soon
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import Process, free_port
from weighbridge.serving.engines.transformers import Transformers, TransformersArgs
from weighbridge.serving.openai_client import Client, RequestRefused, is_ready, post
from weighbridge.serving.shim.protocol import Sampling, TokenStream
from weighbridge.serving.shim.server import ShimServer

ROOT = Path(__file__).resolve().parents[3]
HELLO = [{"role": "user", "content": "hello"}]
ENGINE = Transformers(TransformersArgs())
"""Any engine behind the shim: all of them ask it alike."""


@contextmanager
def served(generator: Bytes, **sampling: float) -> Iterator[str]:
    """The shim in a thread of this process."""
    loop, end, port = asyncio.new_event_loop(), asyncio.Event(), free_port()
    ready = threading.Event()

    async def main() -> None:
        runner = web.AppRunner(
            ShimServer(generator, "made", sampling).app(),
            handler_cancellation=True,
            shutdown_timeout=1,
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ready.set()
        await end.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    ready.wait(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


def figures(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}


@pytest.fixture(scope="module")
def fine() -> Iterator[str]:
    with served(Bytes("fine")) as url:
        yield url


@pytest.mark.parametrize("stream", [False, True])
def test_openais_own_client_gets_text_reason_and_usage(stream: bool) -> None:
    with (
        served(Bytes("grüße 🙂")) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        asked: Any = {"model": "made", "messages": HELLO, "max_tokens": 50}
        if stream:
            events = list(
                client.chat.completions.create(
                    **asked, stream=True, stream_options={"include_usage": True}
                )
            )
            text = "".join(
                event.choices[0].delta.content or "" for event in events if event.choices
            )
            reason = next(
                e.choices[0].finish_reason
                for e in events
                if e.choices and e.choices[0].finish_reason
            )
            usage = events[-1].usage
        else:
            whole = client.chat.completions.create(**asked)
            text, reason, usage = (
                whole.choices[0].message.content,
                whole.choices[0].finish_reason,
                whole.usage,
            )
    assert (text, reason) == ("grüße 🙂", "stop")
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, len("grüße 🙂".encode()) + 1)


def test_plain_prompts_may_be_text_or_tokens() -> None:
    with served(Bytes()) as url:
        for prompt in ("abc", ["abc"], [97, 98, 99], [[97, 98, 99]]):
            reply = post(f"{url}/v1/completions", {"prompt": prompt, "max_tokens": 2})
            assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == (
                "ab",
                "length",
            )


def test_log_probabilities_come_with_every_token() -> None:
    with served(Bytes("ab")) as url:
        reply = post(
            f"{url}/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 1}
        )
        entries = reply["choices"][0]["logprobs"]["content"]
        assert [(entry["token"], entry["logprob"]) for entry in entries] == [
            ("a", -0.5),
            ("b", -0.5),
            ("", -0.5),
        ]
        assert ENGINE.token_logprobs(url, [1], [2, 3]) == [-2.0, -3.0]


def test_plugins_read_tokens_of_texts_and_chats() -> None:
    with served(Bytes()) as url:
        assert ENGINE.tokenize(url, "é") == [195, 169]
        assert ENGINE.chat_tokens(url, HELLO) == list(b"hello")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ({}, "messages"),
        ({"messages": []}, "at least one"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "not Unicode"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "chat template refuses"),
        (
            {"messages": [{"role": "user", "content": "x" * 300}]},
            "300 tokens, and the model's context holds 200",
        ),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": 1.5}, "whole number"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature"),
        ({"messages": HELLO, "temperature": float("nan")}, "temperature"),
        ({"messages": HELLO, "stop": [1]}, "stop"),
        ({"messages": HELLO, "stream": "yes"}, "stream"),
        ({"messages": HELLO, "n": 2}, "`n` is not offered"),
        ({"messages": HELLO, "tools": [{}]}, "`tools` is not offered"),
    ],
)
def test_a_bad_request_is_refused_in_words_and_the_next_one_answered(
    body: Any, words: str, fine: str
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx.post(f"{fine}/v1/chat/completions", content=raw)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert Client(fine).ask(HELLO).text == "fine"


def test_a_request_is_sampled_as_it_says_or_else_as_was_weighed() -> None:
    class Noting(Bytes):
        def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
            seen.append((sampling.temperature, sampling.top_p))
            return super().generate(prompt, sampling)

    seen: list[tuple[float, float]] = []
    with served(Noting("hi"), temperature=0.0, top_p=0.9) as url:
        for options in ({}, {"temperature": None}, {"temperature": 0.7, "top_p": 1.0}):
            post(f"{url}/v1/chat/completions", {"messages": HELLO, **options})
    assert seen == [(0.0, 0.9), (0.0, 0.9), (0.7, 1.0)]


def test_unknown_paths_and_methods_are_told_as_json(fine: str) -> None:
    assert httpx.get(f"{fine}/nowhere").json()["error"]["code"] == 404
    assert httpx.get(f"{fine}/v1/completions").json()["error"]["code"] == 405


def test_a_failing_model_is_told_to_its_client_and_serves_on() -> None:
    generator = Bytes("abcdef")
    generator.fail_at = 3
    with served(generator) as url:
        with pytest.raises(RequestRefused, match="the model broke"):
            Client(url).ask(HELLO)
        with pytest.raises(Unavailable, match="the model broke"):
            list(Client(url).stream(HELLO))
        generator.fail_at = -1
        assert Client(url).ask(HELLO).text == "abcdef"


def test_sixteen_at_once_take_turns_at_the_slots() -> None:
    generator = Bytes("some words", slots=3, delay=0.002)
    with served(generator) as url, ThreadPoolExecutor(16) as pool:
        said = list(pool.map(lambda _: Client(url).ask(HELLO).text, range(16)))
    assert said == ["some words"] * 16
    assert generator.most_at_once == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(stream: bool) -> None:
    generator = Bytes("x" * 190, slots=1, delay=0.05)
    with served(generator) as url:
        leave(f"{url}/v1/chat/completions", {"messages": HELLO, "stream": stream})
        assert soon(lambda: generator.at_once == 0, 10)
        assert 0 < generator.said < 190
        assert soon(lambda: figures(url)["weighbridge_shim_requests_running"] == 0, 10)


def leave(url: str, body: dict[str, Any]) -> None:
    """Ask, and hang up in the middle of the answer."""
    with suppress(httpx.ReadTimeout), httpx.stream("POST", url, json=body, timeout=0.3) as response:
        list(zip(range(8), response.iter_lines(), strict=False))


def test_one_that_leaves_while_it_waits_is_never_begun() -> None:
    generator = Bytes("x" * 20, slots=1, delay=0.05)
    with served(generator) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: Client(url).ask(HELLO).text)
        assert soon(lambda: generator.at_once == 1, 10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json={"messages": HELLO}, timeout=0.2)
        assert first.result() == "x" * 20
        assert soon(lambda: figures(url)["weighbridge_shim_requests_waiting"] == 0, 10)
        assert generator.begun == 1


def test_metrics_count_requests_and_tokens() -> None:
    with served(Bytes("ab")) as url:
        Client(url).ask(HELLO)
        found = figures(url)
    assert found["weighbridge_shim_requests_total"] == 1
    assert found["weighbridge_shim_prompt_tokens_total"] == 5
    assert found["weighbridge_shim_completion_tokens_total"] == 3


def test_sigterm_finishes_what_is_under_way_and_takes_nothing_new(tmp_path: Path) -> None:
    port = free_port()
    program = (
        "from weighbridge.serving.shim.server import serve; "
        "from tests.serving.shim.made import Bytes; "
        f"serve(lambda: Bytes('x' * 20, delay=0.05), '127.0.0.1', {port}, 'made')"
    )
    with Process(
        "the shim", [sys.executable, "-c", program], log=tmp_path / "log", cwd=ROOT
    ) as process:
        url = f"http://127.0.0.1:{port}"
        process.wait_until(lambda: is_ready(url), 30)
        stream = Client(url).stream(HELLO)
        said = [next(stream)]
        subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(process.pid)], check=True)
        assert soon(lambda: not _listens(url), 10)
        said += stream
        assert "".join(said) == "x" * 20
        assert soon(lambda: not process.alive(), 10)


def _listens(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.ConnectError:
        return False
