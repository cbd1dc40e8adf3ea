"""The client: answers, streams, and one clear line for whatever goes wrong."""

import pytest

from tests.stand_ins.openai import MODEL, Behaviour, serve
from weighbridge.core.errors import Unavailable
from weighbridge.serving.openai_client import Client, RequestRefused, is_ready

CHAT = [{"role": "user", "content": "ping"}]


def test_a_chat_is_answered() -> None:
    with serve(Behaviour(answers={"ping": "pong and more"})) as server:
        answer = Client(server.url).ask(CHAT)
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == (
        "pong and more",
        "stop",
        3,
    )


def test_plain_text_is_completed_up_to_the_limit() -> None:
    with serve(Behaviour(answers={"ping": "pong and more"})) as server:
        answer = Client(server.url + "/v1/").ask("ping", max_tokens=2)
    assert (answer.text, answer.finish_reason) == ("pong and", "length")


def test_requests_name_the_served_model_and_are_greedy() -> None:
    with serve() as server:
        Client(server.url).ask(CHAT, seed=3)
    assert {key: server.seen[0][key] for key in ("model", "temperature", "seed")} == {
        "model": MODEL,
        "temperature": 0,
        "seed": 3,
    }


@pytest.mark.parametrize("prompt", [CHAT, "ping"])
def test_a_stream_comes_piece_by_piece(prompt: object) -> None:
    with serve(Behaviour(answers={"ping": "pong and more"}, cut=11)) as server:
        assert list(Client(server.url).stream(prompt)) == ["pong", " and", " more"]  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["truncate_every", "break_every", "unfinished_every"])
def test_a_stream_that_ends_early_is_an_error(fault: str) -> None:
    with serve(Behaviour.of(fault, every=1)) as server, pytest.raises(Unavailable):
        list(Client(server.url).stream(CHAT))


def test_the_servers_own_words_are_passed_on() -> None:
    with serve(Behaviour(error_every=1)) as server:
        with pytest.raises(
            RequestRefused, match="HTTP 500: the stand-in fails as it was told"
        ) as refused:
            Client(server.url).ask(CHAT)
        assert refused.value.status == 500
        with pytest.raises(RequestRefused):
            list(Client(server.url).stream(CHAT))


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(Unavailable) as gone:
        Client("http://127.0.0.1:9").ask(CHAT)
    assert "\n" not in str(gone.value)


@pytest.mark.parametrize("url", ["127.0.0.1:9", "localhost", "ftp://127.0.0.1"])
def test_what_is_no_address_is_one_line(url: str) -> None:
    with pytest.raises(Unavailable, match="begin it with http:// or https://") as stop:
        Client(url).ask(CHAT)
    assert "\n" not in str(stop.value)


def test_headers_go_with_every_request() -> None:
    headers = {"X-Weighbridge-Version": "7"}
    with serve() as server:
        client = Client(server.url, headers=headers)
        client.ask(CHAT)
        list(client.stream(CHAT))
        assert is_ready(server.url, headers=headers)
        assert [sent["X-Weighbridge-Version"] for sent in server.headers] == ["7"] * 5
        Client(server.url).ask(CHAT)
        assert server.headers[-1]["X-Weighbridge-Version"] is None


def test_ready_means_that_a_token_came_back() -> None:
    with serve() as server:
        assert is_ready(server.url)
    with serve(Behaviour(error_every=1)) as server:
        assert not is_ready(server.url)
    assert not is_ready("http://127.0.0.1:9")
