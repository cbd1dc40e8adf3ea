"""An OpenAI-compatible server around a model that a library holds, for engines that bring no server
of their own.

::

    protocol.py  what a library must offer: `Generator`
    orders.py    a request's body, checked, as an `Order`
    text.py      token ids to text, piece by piece: whole characters, nothing of a stop sequence
    server.py    the routes, on aiohttp; runs inside the engine's environment
    client.py    what an engine's plugin asks such a server; runs outside

Nothing here needs more than the standard library and aiohttp. A server script runs isolated, by
path, so it says where the packages are, and puts that last: what lies beside it must not shadow a
library ::

    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]
    from weighbridge.serving.shim.server import serve
"""
