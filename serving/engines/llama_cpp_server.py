"""llama-server out of the wheel `xllamacpp`, under llama-server's own options.

Runs inside the engine's environment, by path and isolated (`python -I`): beside it lie modules
named like packages.
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import time
import urllib.request
from typing import Any

LOG_DELAY = 0.3
"""Seconds llama.cpp's own logging thread gets to say what went wrong: nothing waits for it."""

DRAFTED_BY_SIZE = ("ngram-simple", "ngram-map-k", "ngram-map-k4v")
"""Ways to draft whose sizes can be given."""
DRAIN_SECONDS = 8.0
"""How long answers under way may take after SIGTERM: less than it takes until SIGKILL follows."""
LAST_BYTES = 0.1
"""Seconds the end of an answer gets on its way from the slot to the client."""


def parse() -> argparse.Namespace:
    """Return the options of llama-server that the engine gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in (
        "--model",
        "--host",
        "--alias",
        "--flash-attn",
        "--cache-type-k",
        "--cache-type-v",
        "--lora",
        "--spec-type",
    ):
        parser.add_argument(name)
    numbers = (
        "--port",
        "--ctx-size",
        "--parallel",
        "--threads",
        "--threads-batch",
        "--batch-size",
        "--ubatch-size",
    )
    for name in (*numbers, "--n-gpu-layers", "--cache-ram"):
        parser.add_argument(name, type=int)
    for kind in DRAFTED_BY_SIZE:
        parser.add_argument(f"--spec-{kind}-size-n", type=int)
        parser.add_argument(f"--spec-{kind}-size-m", type=int)
    for name in ("--temp", "--top-p"):
        parser.add_argument(name, type=float)
    for name in ("--kv-unified", "--cache-prompt"):
        parser.add_argument(name, action=argparse.BooleanOptionalAction)
    for name in ("--jinja", "--metrics", "--no-webui"):
        parser.add_argument(name, action="store_true")
    return parser.parse_args()


def parameters(args: argparse.Namespace) -> Any:
    """Return the options as llama.cpp's own structure."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.model_alias = {args.alias}
    params.hostnames = [args.host]
    params.port = args.port
    params.n_ctx = args.ctx_size
    params.n_parallel = args.parallel
    params.kv_unified = args.kv_unified
    params.cache_prompt = args.cache_prompt
    params.n_batch = args.batch_size
    params.n_ubatch = args.ubatch_size
    params.cache_ram_mib = args.cache_ram
    params.flash_attn_type = getattr(
        xllamacpp.llama_flash_attn_type,
        "LLAMA_FLASH_ATTN_TYPE_"
        + {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}[args.flash_attn],
    )
    params.cache_type_k = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{args.cache_type_k.upper()}")
    params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{args.cache_type_v.upper()}")
    params.sampling.temp, params.sampling.top_p = args.temp, args.top_p
    params.use_jinja = args.jinja
    if args.lora:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = args.lora, 1.0
        params.lora_adapters = [adapter]
    params.endpoint_metrics = args.metrics
    params.ui = not args.no_webui
    if args.spec_type:
        draft(args, params.speculative)
    if args.threads:
        params.cpuparams.n_threads = args.threads
    if args.threads_batch:
        params.cpuparams_batch.n_threads = args.threads_batch
    if args.n_gpu_layers is not None:
        params.n_gpu_layers = args.n_gpu_layers
    return params


def draft(args: argparse.Namespace, speculative: Any) -> None:
    """Set how tokens are drafted, and the sizes that are given."""
    import xllamacpp

    name = args.spec_type.replace("-", "_")
    speculative.types = [
        getattr(xllamacpp.common_speculative_type, f"COMMON_SPECULATIVE_TYPE_{name.upper()}")
    ]
    for size in ("size_n", "size_m"):
        value = getattr(args, f"spec_{name}_{size}", None)
        if value is not None:
            setattr(getattr(speculative, name), size, value)


def under_way(host: str, port: int) -> int:
    """Return how many requests are being answered or wait for their turn."""
    # A wildcard is where to listen, not where to connect to.
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
        host, f"[{host}]" if ":" in host else host
    )
    # No proxy of the user's may stand between us and our own machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with (
        contextlib.suppress(OSError),
        opener.open(f"http://{address}:{port}/metrics", timeout=1) as page,
    ):
        return sum(
            map(
                int,
                re.findall(
                    r"^llamacpp:requests_(?:processing|deferred) (\d+)", page.read().decode(), re.M
                ),
            )
        )
    return 0


def drain(host: str, port: int) -> None:
    """Wait until what is under way has been answered."""
    deadline = time.monotonic() + DRAIN_SECONDS
    busy = False
    while time.monotonic() < deadline and under_way(host, port):
        busy = True
        time.sleep(0.02)
    time.sleep(LAST_BYTES if busy else 0)


def main() -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way."""
    import xllamacpp

    endings = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the server's threads exist, so that they inherit it and sigwait alone gets the
    # signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, endings)
    args = parse()
    try:
        _server = xllamacpp.Server(parameters(args))  # serves as long as it is held
    except RuntimeError as exc:
        time.sleep(LOG_DELAY)
        sys.exit(f"llama-server did not start: {exc}")
    signal.sigwait(endings)
    drain(args.host, args.port)
    sys.stdout.flush()
    # The server's own ending cuts answers off, and now and then waits half a minute for one of its
    # threads.
    os._exit(0)


if __name__ == "__main__":
    main()
