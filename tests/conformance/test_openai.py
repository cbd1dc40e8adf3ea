"""An endpoint by its URL is held to the suite through the process that passes requests on to it."""

from pathlib import Path

import httpx
import psutil
import pytest

from tests.stand_ins.openai import Behaviour
from tests.stand_ins.openai import serve as stand_in
from weighbridge.conformance.reference_model import model_folder
from weighbridge.conformance.runner import check, servable
from weighbridge.core.errors import Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import serve
from weighbridge.serving.engines.llama_cpp import LlamaCpp, LlamaCppArgs
from weighbridge.serving.engines.openai import OpenAI, OpenAIArgs
from weighbridge.serving.openai_client import Client, RequestRefused

KEY = "sk-nobody-may-see-this"


@pytest.mark.slow
def test_what_an_endpoint_does_comes_through(workspace: Workspace, tmp_path: Path) -> None:
    cache = workspace.settings.cache
    artifact = servable(LlamaCpp(LlamaCppArgs()), model_folder(cache), workspace)
    args = LlamaCppArgs(threads=1)
    with serve(artifact.path, args, cache, tmp_path / "log") as endpoint:
        report = check("openai", workspace, options={"url": f"{endpoint.url}/v1"})
    verdicts = {outcome["check"]: outcome["verdict"] for outcome in report.outcomes}
    assert report.failed == [], report.outcomes
    unclaimed = {name for name, verdict in verdicts.items() if verdict != "passed"}
    assert unclaimed == {"tokenization", "chat_template", "logprobs", "metrics", "failed_start"}


def test_the_key_goes_to_the_endpoint_and_is_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with stand_in(Behaviour(answers={"ping": "pong"})) as server:
        args = OpenAIArgs(url=f"{server.url}/v1", api_key_env="MY_KEY", model="stand-in-large")
        with serve(tmp_path, args, Settings().cache, tmp_path / "log") as running:
            assert Client(running.url).ask("ping").text == "pong"
            assert Client(running.url).models() == ["stand-in-large"]
            assert KEY not in " ".join(psutil.Process(running.process.pid).cmdline())
            asked = len(server.headers)
            for path in ("/v1/files", "/v1/models/x", "/v1/%66iles", "/slots", "/v1/../slots"):
                url = httpx.URL(running.url, raw_path=path.encode())
                assert httpx.post(url, json={}).status_code == 404, "not open to its key's use"
            assert len(server.headers) == asked
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        assert {body["model"] for body in server.seen} == {"stand-in-large"}
    assert KEY not in (tmp_path / "log").read_text()


def test_an_endpoint_is_asked_to_draw_as_it_was_weighed(tmp_path: Path) -> None:
    with stand_in() as server:
        args = OpenAIArgs(url=f"{server.url}/v1", model="stand-in", temperature=0.3)
        with serve(tmp_path, args, Settings().cache, tmp_path / "log") as running:
            url, chat = f"{running.url}/v1/chat/completions", [{"role": "user", "content": "ping"}]
            for named in ({}, {"temperature": 0.0}):
                httpx.post(url, json={"messages": chat, **named}).raise_for_status()
        asked = [(body["temperature"], body["top_p"]) for body in server.seen[-2:]]
    assert asked == [(0.3, 1.0), (0.0, 1.0)]


def test_an_endpoint_that_refuses_or_goes_away_is_told_in_its_own_words(tmp_path: Path) -> None:
    with stand_in() as server:
        args = OpenAIArgs(url=server.url)
        with serve(tmp_path, args, Settings().cache, tmp_path / "log") as running:
            server.behaviour = Behaviour(error_every=1)
            with pytest.raises(RequestRefused, match="the stand-in fails as it was told"):
                Client(running.url).ask("ping")
            server.shutdown()
            server.server_close()
            with pytest.raises(RequestRefused, match="HTTP 502: the endpoint does not answer"):
                Client(running.url).ask("ping")


def test_an_endpoint_that_is_not_there_is_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(Unavailable, match=r"looking for an endpoint at http://127\.0\.0\.1:1/v1"):
        OpenAI(OpenAIArgs(url="http://127.0.0.1:1/v1")).check()
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(Unavailable, match="the environment variable MY_KEY is not set"):
        OpenAI(OpenAIArgs(api_key_env="MY_KEY")).check()


@pytest.mark.parametrize(
    "field", [{"api_key_env": "sk-secret"}, {"url": "http://user:secret@host/v1"}]
)
def test_a_key_where_its_name_belongs_is_refused(field: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        OpenAIArgs(**field)  # type: ignore[arg-type]  # the options are all text
