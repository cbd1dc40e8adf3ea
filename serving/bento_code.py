"""The code of ours that travels in every Bento."""

import hashlib
from pathlib import Path

from weighbridge.core.paths import PACKAGE
from weighbridge.core.store import sha256_of

PACKED_CODE = (
    "core/__init__.py",
    "core/artifact.py",
    "core/bytecode.py",
    "core/environments.py",
    "core/errors.py",
    "core/field_types.py",
    "core/formatting.py",
    "core/gguf_header.py",
    "core/machine.py",
    "core/parent_death.py",
    "core/paths.py",
    "core/plugins.py",
    "core/processes.py",
    "core/progress.py",
    "core/safetensors_header.py",
    "core/settings.py",
    "core/strict_json.py",
    "core/uv_settings.py",
    "plugins/*.py",
    "serving/__init__.py",
    "serving/bento_candidate.py",
    "serving/bento_middleware.py",
    "serving/client_requests.py",
    "serving/event_stream.py",
    "serving/openai_client.py",
    "serving/llama_cpp_native.py",
    "serving/service.py",
    "serving/reaper.py",
    "serving/request_watch.py",
    "serving/pod_drain.py",
    "serving/passthrough.py",
    "serving/engines/*.py",
    "serving/shim/*.py",
)
"""What the service imports, engines included, and what engines of other packages import of ours,
and nothing else: a change elsewhere makes no new version of a Bento. A test holds the list to what
is imported.
"""


def files() -> list[Path]:
    """Return the files of ours that a Bento carries."""
    return [path for pattern in PACKED_CODE for path in sorted(PACKAGE.glob(pattern))]


def digest() -> str:
    """Return the SHA-256 of those files and of where they lie, in hexadecimal."""
    lines = [f"{sha256_of(path)}  {path.relative_to(PACKAGE)}\n" for path in files()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
