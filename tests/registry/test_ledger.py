"""The ledger: every rollout, newest first."""

from registry import Intent, Registry


def test_a_rollout_is_written_before_and_after(registry: Registry) -> None:
    assert registry.history("local") == []
    first = registry.begin_rollout(
        Intent("local", "demo", "4", evidence={"answered": "1 of 1"}, digests={"bento": "x"})
    )
    assert registry.history("local")[0].outcome == "begun"
    registry.finish_rollout(first, "serving")
    second = registry.begin_rollout(Intent("local", "demo", "5", previous="4", trigger="promote"))
    registry.finish_rollout(second, "rolled back", "it did not answer")
    newest, oldest = registry.history("local")
    assert (newest.version, newest.previous, newest.outcome, newest.detail) == (
        "5",
        "4",
        "rolled back",
        "it did not answer",
    )
    assert (oldest.outcome, oldest.evidence, oldest.digests) == ("serving", {"answered": "1 of 1"}, {"bento": "x"})
    assert oldest.ended is not None
    assert registry.history("elsewhere") == []
