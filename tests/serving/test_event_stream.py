"""Event streams: the same events wherever the network cuts them."""

import pytest

from weighbridge.serving.event_stream import EventReader, read_events

STREAM = (
    b': a comment\n\ndata: {"n": 1}\n\nevent: x\ndata:{"n": "\xc3\xa9"}\r\n\r\n'
    b"data: [DONE]\n\ndata: late\n"
)


@pytest.mark.parametrize("step", [1, 2, 7, len(STREAM)])
def test_events_are_the_same_wherever_the_stream_is_cut(step: int) -> None:
    reader = EventReader()
    chunks = [STREAM[start : start + step] for start in range(0, len(STREAM), step)]
    assert list(read_events(chunks, reader)) == [b'{"n": 1}', b'{"n": "\xc3\xa9"}']
    assert reader.done


def test_a_stream_that_is_cut_is_not_done() -> None:
    reader = EventReader()
    assert list(read_events([b'data: {"n": 1}\n\nda'], reader)) == [b'{"n": 1}']
    assert not reader.done


def test_a_last_line_needs_no_line_break() -> None:
    reader = EventReader()
    assert list(read_events([b"data: 1\n\n", b"data: [DONE]"], reader)) == [b"1"]
    assert reader.done


def test_a_failure_in_a_field_of_its_own_is_an_error_event() -> None:
    assert EventReader().feed(b'error: {"code": 500}\n\n') == [b'{"error": {"code": 500}}']
