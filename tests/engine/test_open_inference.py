"""The real tritonclient against the real engine: its tensors hold what our own API answers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tuneserve.v1 import classification_pb2, embedding_pb2, generation_pb2

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

CLIENT = Path(__file__).parents[1] / "server" / "open_inference" / "triton_client.py"
TEXTS = ["a lovely film, warm and funny", "dull, slow and far too long", "Wonderful!"]
# Continued with certainty: in bfloat16 a close choice may fall otherwise beside other prompts than alone.
PROMPTS = ["Monday, Tuesday, Wednesday,", "one, two, three, four, five,"]
GREEDY = {"max_tokens": 6, "temperature": 0.0}


def triton(real, *calls: dict) -> list:
    """What the real client makes of these calls; see triton_client.py."""
    command = [sys.executable, str(CLIENT), real.server.addresses.grpc]
    result = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, timeout=1200, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def infer(model: str, inputs: dict, **options) -> dict:
    return {"method": "infer", "model": model, "inputs": inputs, **options}


def generated(real, prompt: str) -> str:
    request = generation_pb2.GenerateRequest(
        model="chat",
        prompt=generation_pb2.Prompt(text=prompt),
        sampling=generation_pb2.SamplingParams(**GREEDY),
    )
    return real.generation.Generate(request).completions[0].text


def test_every_model_is_ready_and_describes_itself(real):
    names = list(real.directories)
    answers = triton(
        real,
        {"method": "is_server_ready"},
        *({"method": "is_model_ready", "arguments": [name]} for name in names),
        *({"method": "get_model_metadata", "arguments": [name]} for name in names),
    )
    assert answers[: 1 + len(names)] == [True] * (1 + len(names))
    assert [one["name"] for one in answers[1 + len(names) :]] == names


def test_classification(real):
    [answer] = triton(real, infer("sentiment", {"text": TEXTS}))
    ours = real.classification.Classify(
        classification_pb2.ClassifyRequest(
            model="sentiment", inputs=[classification_pb2.ClassifyInput(text=text) for text in TEXTS]
        )
    )
    assert answer["label"] == [result.labels[0].label for result in ours.results]
    assert answer["labels"] == [[one.label for one in result.labels] for result in ours.results]
    expected = np.array([[one.score for one in result.labels] for result in ours.results])
    assert np.array(answer["scores"]) == pytest.approx(expected, abs=1e-4)
    assert answer["parameters"]["prompt_tokens"] == ours.usage.prompt_tokens


def test_spans(real):
    text = "Barack Obama met Angela Merkel in Berlin"
    [answer] = triton(real, infer("ner", {"text": [text]}))
    ours = real.classification.ClassifyTokens(classification_pb2.ClassifyTokensRequest(model="ner", texts=[text]))
    found = json.loads(answer["spans"][0])
    assert [(one["label"], one["start"], one["end"], one["text"]) for one in found] == [
        (span.label, span.start, span.end, span.text) for span in ours.results[0].spans
    ]
    assert found


def test_embeddings(real):
    [answer] = triton(real, infer("vectors", {"text": TEXTS}))
    ours = real.embedding.Embed(embedding_pb2.EmbedRequest(model="vectors", texts=TEXTS))
    expected = np.array([list(result.values) for result in ours.results])
    assert answer["shapes"]["embedding"] == list(expected.shape)
    assert np.array(answer["embedding"]) == pytest.approx(expected, abs=1e-4)


def test_generation(real):
    alone = {"text_input": PROMPTS, "exclude_input_in_output": [True]}
    [new, whole] = triton(
        real,
        infer("chat", alone, parameters=GREEDY),
        infer("chat", {"text_input": PROMPTS[:1], "sampling_parameters": [json.dumps(GREEDY)]}),
    )
    expected = [generated(real, prompt) for prompt in PROMPTS]
    assert new["text_output"] == expected
    assert "Thursday" in expected[0]
    assert "six" in expected[1]
    assert whole["text_output"] == [PROMPTS[0] + expected[0]]
    assert whole["num_output_tokens"][0] == whole["parameters"]["completion_tokens"]


def test_prompts_on_one_stream_come_token_by_token(real):
    requests = [
        {
            "model": "chat",
            "inputs": {"text_input": [prompt], "stream": [True], "sampling_parameters": [json.dumps(GREEDY)]},
            "request_id": str(index),
        }
        for index, prompt in enumerate(PROMPTS)
    ]
    requests.append({"model": "sentiment", "inputs": {"text": TEXTS[:1]}, "request_id": "label"})
    [answers] = triton(real, {"method": "stream", "requests": requests})
    for index, prompt in enumerate(PROMPTS):
        found = [one for one in answers if one["id"] == str(index)]
        assert "".join(one["text_output"][0] for one in found) == generated(real, prompt)
        assert len(found) > 3
        assert [one["parameters"]["triton_final_response"] for one in found] == [False] * (len(found) - 1) + [True]
        assert found[-1]["finish_reason"][0] in ("stop", "length")
    assert [one["label"][0] for one in answers if one["id"] == "label"]


def test_bad_input_is_refused_by_its_tensors_name(real):
    [answer] = triton(real, infer("sentiment", {"text": ["fine", " "]}))
    assert answer["status"] == "StatusCode.INVALID_ARGUMENT"
    assert "inputs[0] (text)[1]" in answer["error"]
