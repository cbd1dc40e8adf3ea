"""The public interface for the server of an engine whose library has none: it turns a loaded model
into a server that speaks OpenAI's HTTP API.

It runs in the engine's own environment, which needs `aiohttp` and nothing else of ours. See
`weighbridge.plugins` for what may change when.
"""

from weighbridge.serving.shim.protocol import Generator, Sampling, Token, TokenStream
from weighbridge.serving.shim.server import add_options, serve

__all__ = ["Generator", "Sampling", "Token", "TokenStream", "add_options", "serve"]
