"""What the engine gives."""

from tuneserve.server.engine.interface import Delta


def test_a_delta_is_text_until_it_is_taken_apart():
    assert (Delta(0, "a", [1]).reasoning, Delta(0, "a", [1]).tool_calls) == ("", ())
