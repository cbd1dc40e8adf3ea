"""An OpenAI-compatible server around a model that a library holds, for engines that bring no server
of their own.

::

    protocol.py      what a library must offer: `Generator`
    requests.py      a request's body, checked, as a `CompletionRequest`
    sampler.py       logits to a token, in numpy
    batching.py      many answers at a time over any decoder, in numpy
    detokenizer.py   token ids to text: whole characters, nothing of a stop sequence
    hf_tokenizer.py  a Hugging Face tokenizer and its chat template, without transformers
    responses.py     answers in OpenAI's form
    server.py        the routes, on aiohttp; runs inside the engine's environment

A file's own docstring says what it needs beyond the standard library and aiohttp. A server script
runs isolated, by path, so it says where the packages are. It names that one package and adds no
folder to the module path: what lies in it would shadow libraries of the same name ::

    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]
    from weighbridge.serving.shim.server import serve
"""
