"""What an engine took, as the report and `show` tell it."""

from tests.tasks.made import load, measured
from weighbridge.tasks.engine_use import engine_use, engine_use_rows
from weighbridge.tasks.measurement import GpuUse


def test_what_was_measured_is_told_at_every_concurrency() -> None:
    levels = [
        load(100).model_copy(
            update={
                "requests": 10,
                "errors": 1,
                "unfinished": 1,
                "cpu_seconds": 4.0,
                "warm_up_requests": 1,
                "warm_up_seconds": 0.2,
                "cached_share": 0.25,
            }
        ),
        load(300, 8),
    ]
    gpu = GpuUse(
        cards=2, memory=3 << 30, utilization=0.9, clock_mhz=1700.4, lowest_clock_mhz=1500.0
    )
    assert engine_use(2.4, levels, gpu) == {
        "first token after its start": "2.4 s",
        "warm-up requests at 1 / 8": "1 in 200 ms / 0 in 0.0 ms",
        "CPU per request at 1 / 8": "500 ms / —",
        "prompts found in its cache at 1 / 8": "25% / —",
        "graphics cards under load": "2, 3.00 GiB, busy 90% of the time, 1,700 MHz, at least 1,500",
    }


def test_records_of_older_releases_tell_what_they_have() -> None:
    assert engine_use(2.4, [load(100)], None) == {"first token after its start": "2.4 s"}


def test_rows_have_the_same_columns_and_leave_out_who_was_not_measured() -> None:
    on_gpu = measured("gpu").model_copy(update={"gpu": GpuUse(cards=1, memory=1 << 20)})
    rows = engine_use_rows([measured("dead", failure="it died"), measured("cpu"), on_gpu])
    assert [row["candidate"] for row in rows] == ["llama_cpp/cpu", "llama_cpp/gpu"]
    assert [row["graphics cards under load"] for row in rows] == ["—", "1, 1.0 MiB"]
