"""What weigh is asked for, and what is refused of it before anything is made."""

import pytest
from pydantic import ValidationError

from tests.tasks.doubling import args
from weighbridge.core.errors import Unavailable
from weighbridge.tasks.weigh import check
from weighbridge.tasks.weigh_args import WeighArgs

pytestmark = pytest.mark.usefixtures("stand_in")


def test_an_engine_whose_device_is_missing_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    wanted = WeighArgs.model_validate(
        {"engines": [{"kind": "llama_cpp"}, {"kind": "vllm", "device": "cuda"}]}
    )
    with pytest.raises(Unavailable, match="starting vllm: there is no NVIDIA device here"):
        check(wanted)


def test_rates_need_a_limit() -> None:
    with pytest.raises(ValidationError, match="give ttft_limit"):
        args(arrivals="poisson")


def test_a_percentile_that_the_requests_of_a_rate_cannot_carry_is_refused() -> None:
    rates = {"arrivals": "poisson", "ttft_limit": 1.0, "limit_percentile": 0.99}
    with pytest.raises(ValidationError, match=r"takes 459 .* at most 256 count; give 718"):
        args(**rates, rate_requests=400)
    assert args(**rates, rate_requests=718)
