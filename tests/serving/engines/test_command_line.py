"""Options as words of a command line, and arguments worth trying."""

from tests.stand_ins.engine import StandInArgs
from weighbridge.serving.engines.command_line import flags, variations


def test_options_that_are_not_given_are_left_out_and_switches_have_no_value() -> None:
    options = {"max_len": 8, "open": None, "off": False, "on": True, "name": "a b"}
    assert flags(options) == ["--max-len", "8", "--on", "--name", "a b"]
    assert flags(options, dashed=False)[0] == "--max_len"


def test_what_is_left_open_is_varied_and_what_is_given_stays() -> None:
    tried = variations(StandInArgs(), threads=(1, 2))
    assert [args.threads for args in tried] == [1, 2]
    given = StandInArgs(threads=3)
    assert variations(given, threads=(1, 2)) == [given]
