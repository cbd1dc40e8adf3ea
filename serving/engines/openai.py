"""Any endpoint that speaks OpenAI's API, by its URL and the name of the variable that holds its
key.

Nothing is served here: a small process passes requests on and adds the key, so that an endpoint is
started, asked, measured and stopped like every other engine, and its key is in no request, command
line or log of ours. Figures taken through it are those of the endpoint as it is reached from here;
the memory is the passing process's alone. Nothing proves that the endpoint serves the candidate's
weights: whoever names it says so, and its answers show it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import Field

from weighbridge.core.artifact import Format
from weighbridge.core.errors import Unavailable
from weighbridge.core.field_types import Word
from weighbridge.serving.engines.base import Capabilities, Engine, EngineArgs
from weighbridge.serving.engines.command_line import flags
from weighbridge.serving.openai_client import Client, RequestRefused

LAUNCHER: Final = Path(__file__).with_name("openai_server.py")
NO_MODEL = "it loads no model of ours"


class OpenAIArgs(EngineArgs):
    """Where the endpoint is."""

    kind: Literal["openai"] = "openai"
    start_timeout: float = Field(
        60.0, gt=0, description="Seconds until the first real token must have come."
    )
    url: str = Field(
        "http://127.0.0.1:8000/v1",
        # No user and password in it: everybody on the machine can read a command line.
        pattern=r"^https?://[^@\s\x00-\x1f\x7f]+$",
        description="The endpoint, with its `/v1`.",
    )
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds its key.",
    )
    model: Word | None = Field(None, description="Model to ask for; open: the first that it lists.")


class OpenAI(Engine[OpenAIArgs]):
    """Passes requests on to an endpoint."""

    name: ClassVar[str] = "openai"
    Args: ClassVar[type[EngineArgs]] = OpenAIArgs
    formats: ClassVar[frozenset[Format]] = frozenset({"safetensors"})
    locks: ClassVar[Mapping[str, Path]] = {"cpu": Path(__file__).with_suffix(".lock")}
    packages: ClassVar[tuple[str, ...]] = ("aiohttp",)
    keeps_sampling: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(lacks={"failed_start": NO_MODEL})

    def check(self, model: Path | None = None) -> None:
        """Ask the endpoint for its models.

        Raises:
            Unavailable: Its key is not set, or nobody answers.
        """
        args = self.args
        doing = f"looking for an endpoint at {args.url}"
        if args.api_key_env and not os.environ.get(args.api_key_env):
            raise Unavailable(
                doing,
                f"the environment variable {args.api_key_env} is not set",
                "put its key there",
            )
        key = os.environ.get(args.api_key_env or "", "")
        try:
            Client(args.url, 30, {"Authorization": f"Bearer {key}"} if key else None).models()
        except RequestRefused as exc:
            # Not every endpoint lists its models: any other refusal shows that somebody is there.
            if exc.status in (401, 403):
                raise Unavailable(doing, exc.wrong, "look at `api_key_env`") from exc
        except Unavailable as exc:
            raise Unavailable(doing, exc.wrong, "start it, or give another `url`") from exc

    def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
        """Return the command line of the process that passes on; it reads the key from its
        environment.
        """
        args = self.args
        options = {
            "host": host,
            "port": port,
            "url": args.url,
            "api_key_env": args.api_key_env,
            "model": args.model,
            **args.sampling(),
        }
        return [str(python), "-I", str(LAUNCHER), *flags(options)]
