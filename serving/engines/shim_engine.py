"""What every engine behind the shim has in common: how its server is started and asked."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from weighbridge.serving.engines.base import ArgsT, Engine
from weighbridge.serving.engines.command_line import flags
from weighbridge.serving.openai_client import post


class ShimEngine(Engine[ArgsT]):
    """An engine whose server is a script around `weighbridge.serving.shim`."""

    server: ClassVar[Path]
    """The script. It takes `--model`, `--host`, `--port` and what `options` says."""

    @abstractmethod
    def options(self) -> Mapping[str, object]:
        """Return further options of the script by name: None and False are left out, True is a
        switch without a value.
        """

    def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
        """Return the command line of the script.

        Isolated (`-I`): the script's folder would come first on Python's path, and a plugin there
        may be named like the library that it uses.
        """
        options = {"model": model, "host": host, "port": port, **self.options()}
        return [str(python), "-I", str(self.server), *flags(options)]

    def token_logprobs(
        self, url: str, prompt: Sequence[int], completion: Sequence[int]
    ) -> list[float]:
        """Return the natural-log probabilities, from one reading of prompt and completion."""
        body = {"prompt": list(prompt), "completion": list(completion)}
        return [float(value) for value in post(f"{url}/logprobs", body)["logprobs"]]

    def tokenize(self, url: str, text: str) -> list[int]:
        """Return the token ids of a text: special tokens parsed, none added."""
        return [int(token) for token in post(f"{url}/tokenize", {"prompt": text})["tokens"]]

    def chat_tokens(self, url: str, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a chat, up to where the answer begins."""
        body = {"messages": [dict(message) for message in messages]}
        return [int(token) for token in post(f"{url}/tokenize", body)["tokens"]]
