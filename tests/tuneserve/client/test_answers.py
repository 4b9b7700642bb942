"""A stream's parts joined are the whole answer, and tool calls go back as a chat template expects them."""

from tuneserve.client import ToolCall, answers
from tuneserve.v1 import generation_pb2 as pb


def part(**fields) -> pb.GenerateStreamResponse:
    return pb.GenerateStreamResponse(completions=[pb.Completion(**fields)])


def test_the_parts_of_a_stream_are_joined():
    parts = answers.GenerationParts()
    texts = [
        parts.add(one)
        for one in (
            part(reasoning="Rain", token_ids=[1]),
            part(reasoning=" likely.", token_ids=[2]),
            part(text="I'll ", token_ids=[3]),
            part(text="look.", tool_calls=[pb.ToolCall(index=0, id="a", name="weather", arguments='{"city":')]),
            part(tool_calls=[pb.ToolCall(index=0, arguments=' "Oslo"}'), pb.ToolCall(index=1, id="b", name="time")]),
            part(tool_calls=[pb.ToolCall(index=1, arguments="{}")], finish_reason=pb.FINISH_REASON_TOOL_CALLS),
        )
    ]
    assert texts == ["", "", "I'll ", "look.", "", ""]
    [made] = answers.generation(parts.joined()).completions
    assert (made.text, made.reasoning, made.finish_reason) == ("I'll look.", "Rain likely.", "tool_calls")
    assert made.tool_calls == (ToolCall("a", "weather", '{"city": "Oslo"}'), ToolCall("b", "time", "{}"))
    assert answers.generation(parts.joined()).completions == (made,), "also when it is asked for again"
