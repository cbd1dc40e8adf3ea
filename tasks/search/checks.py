"""What can be said of a setting for nothing: whether its engine takes it, whether it fits in
memory, whether its tokens are the tokens of the others.
"""

import hashlib
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from weighbridge.core import machine
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.formatting import human_size
from weighbridge.serving.engines.base import EngineArgs, engine_for
from weighbridge.tasks.candidate_questions import tokenizer_of
from weighbridge.tasks.measurement import Candidate
from weighbridge.tasks.search.space import CANDIDATE, Setting, Space


def refused(
    space: Space, candidates: Mapping[str, Candidate], args_of: Callable[[Setting], EngineArgs]
) -> dict[int, str]:
    """Return why settings cannot work, by their numbers."""
    foreign = _foreign(candidates)
    available = machine.memory()
    reasons = {}
    for number, setting in enumerate(space.settings):
        candidate = candidates[setting[CANDIDATE]]
        why = foreign.get(candidate.label) or _why_not(candidate, setting, args_of, available)
        if why:
            reasons[number] = why
    return reasons


def _why_not(
    candidate: Candidate, setting: Setting, args_of: Callable[[Setting], EngineArgs], available: int
) -> str | None:
    model = candidate.variant.artifact.path
    try:
        engine = engine_for(args_of(setting))
        engine.check(model)
        needed = engine.least_memory(model)
    except ValidationError as exc:
        return str(exc.errors()[0]["msg"])
    except WeighbridgeError as exc:
        return exc.wrong
    if needed <= available:
        return None
    return (
        f"it needs {human_size(needed)} of memory at least, and there are {human_size(available)}"
    )


def _foreign(candidates: Mapping[str, Candidate]) -> dict[str, str]:
    """Return the candidates whose tokenizer is not the first one's: their tokens per second are of
    other tokens.
    """
    digests = {label: _tokenizer_digest(candidate) for label, candidate in candidates.items()}
    first = next((label for label, digest in digests.items() if digest), None)
    return {
        label: f"its tokenizer is not that of {first}: tokens per second of both cannot be compared"
        for label, digest in digests.items()
        if first is not None and digest and digest != digests[first]
    }


def _tokenizer_digest(candidate: Candidate) -> str | None:
    file = tokenizer_of(candidate.variant.artifact) / "tokenizer.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
