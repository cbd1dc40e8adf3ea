"""Passes OpenAI's API on to a remote endpoint, and adds the key.

Runs in the engine's environment, isolated and by path.
"""

import argparse
import asyncio
import json
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

# An isolated Python knows no package of ours: this is where it lies.
if "weighbridge" not in sys.modules:
    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]

from weighbridge.serving.client_requests import OPENAI_OPERATIONS, with_defaults
from weighbridge.serving.passthrough import NoAnswer, Upstream
from weighbridge.serving.shim.server import DRAIN_SECONDS, LARGEST_BODY, error, listen

PASSED_BACK = ("Content-Type", "Retry-After", "x-request-id")


class RemoteEndpoint:
    """The API of one remote endpoint, as a server of our own."""

    def __init__(
        self, url: str, key: str | None, model: str | None, sampling: Mapping[str, float]
    ) -> None:
        # A remote endpoint may compress its answers, and only PASSED_BACK of its headers go back.
        self._endpoint = Upstream(url.rstrip("/").removesuffix("/v1"), decompress=True)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._model = model
        self._sampling = sampling

    def app(self) -> web.Application:
        """Return the routes: /health tells that this process lives, the rest is the endpoint's.

        What its key opens beyond the use of a model, such as files or fine-tunes, stays closed.
        """
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        for operation in sorted(OPENAI_OPERATIONS - {"GET /v1/models"}):
            method, path = operation.split(" ")
            app.router.add_route(method, path, self._pass)
        app.on_cleanup.append(self._close)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        if self._model is None:
            return await self._pass(request)
        return web.json_response(
            {"object": "list", "data": [{"id": self._model, "object": "model"}]}
        )

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on; a client that hangs up cancels this, and with it the request to the
        endpoint.
        """
        content_type = request.headers.get("Content-Type", "application/json")
        headers = {**self._headers, "Content-Type": content_type}
        operation = f"{request.method} {request.path}"
        body = self._for_model(with_defaults(operation, await request.read(), self._sampling))
        try:
            async with self._endpoint.request(
                request.method, request.path_qs, headers, body
            ) as answer:
                passed_back = {
                    name: answer.headers[name] for name in PASSED_BACK if name in answer.headers
                }
                response = web.StreamResponse(status=answer.status, headers=passed_back)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
        except NoAnswer as exc:
            message = f"the endpoint does not answer: {type(exc.__cause__).__name__}"
            return web.json_response(error(message, 502), status=502)
        await response.write_eof()
        return response

    def _for_model(self, body: bytes) -> bytes:
        """Return the body with the model that was named; one that is no JSON object is the
        endpoint's to refuse.
        """
        if self._model is None or not body:
            return body
        try:
            options: Any = json.loads(body)
        except (ValueError, RecursionError):
            return body
        if not isinstance(options, dict):
            return body
        return json.dumps({**options, "model": self._model}).encode()

    async def _close(self, app: web.Application) -> None:
        await self._endpoint.close()


def main() -> None:
    """Pass on until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--api-key-env", default="")
    parser.add_argument("--model")
    parser.add_argument("--temperature", type=float, required=True)
    parser.add_argument("--top-p", type=float, required=True)
    options = parser.parse_args()
    key = os.environ.get(options.api_key_env)
    if options.api_key_env and not key:
        sys.exit(
            f"the environment variable {options.api_key_env}, "
            "which is to hold the endpoint's key, is not set"
        )
    sampling = {"temperature": options.temperature, "top_p": options.top_p}
    app = RemoteEndpoint(options.url, key, options.model, sampling).app()
    asyncio.run(listen(app, options.host, options.port, DRAIN_SECONDS))


if __name__ == "__main__":
    main()
