"""vLLM: its command line, and how its log-probabilities are read. The engine itself is run elsewhere."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.errors import Unavailable
from serving.engines.vllm import Vllm, VllmArgs


class Server(BaseHTTPRequestHandler):
    """Replies in vLLM's form: each prompt token with a log-probability of minus its id, beside a likelier one."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._reply({"data": [{"id": "served-name"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "served-name"
        if self.path == "/tokenize":
            assert body["add_special_tokens"] is False
            self._reply({"tokens": [len(word) for word in body["prompt"].split()]})
            return
        told = [{str(token): {"logprob": -token}, "999": {"logprob": -0.1}} for token in body["prompt"]]
        if 13 in body["prompt"]:
            told.pop()
        self._reply({"choices": [{"text": "x", "prompt_logprobs": [None, *told[1:]]}]})

    def _reply(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_options_are_vllms_own() -> None:
    args = VllmArgs(dtype="bfloat16", max_model_len=1024, enforce_eager=True, enable_prefix_caching=False)
    command = Vllm().command(Path("/models/one"), args, "127.0.0.1", 8000, Path("/env/bin/python"))
    assert command[:5] == ["/env/bin/python", "-I", "/env/bin/vllm", "serve", "/models/one"]
    text = " ".join(command)
    for words in ("--port 8000", "--dtype bfloat16", "--max-model-len 1024", "--enforce-eager"):
        assert words in text
    assert "--no-enable-prefix-caching" in text
    assert "--quantization" not in text


def test_log_probabilities_are_those_of_the_completion(url: str) -> None:
    assert Vllm().token_logprobs(url, [1, 2, 3], [4, 5]) == [-4.0, -5.0]


def test_missing_log_probabilities_are_an_error(url: str) -> None:
    with pytest.raises(Unavailable, match="it gave 2 for 3 tokens"):
        Vllm().token_logprobs(url, [1, 2], [13])


def test_texts_are_cut_without_special_tokens_added(url: str) -> None:
    assert Vllm().tokenize(url, "one three") == [3, 5]
