"""Generation on the real engine: equal to vLLM offline and to transformers, stopped, sampled and streamed."""

import json
import re
import threading

import grpc
import jsonschema
import pytest
import torch

from tuneserve.v1 import generation_pb2 as pb

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

QUESTIONS = ["What is the capital of France?", "Say hello in Spanish.", "Name three colours.", "東京はどこですか？"]


def chat(question: str) -> pb.Prompt:
    return pb.Prompt(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content=question)]))


def greedy(prompt: pb.Prompt, max_tokens: int, **fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model="chat", prompt=prompt, sampling=pb.SamplingParams(max_tokens=max_tokens, temperature=0, **fields)
    )


def test_the_chat_template_renders_as_in_training(real):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real.directories["chat"])
    for question in QUESTIONS:
        response = real.generation.Tokenize(pb.TokenizeRequest(model="chat", prompt=chat(question)))
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        assert [token.id for token in response.tokens] == expected


def test_greedy_text_equals_vllm_offline(real, offline):
    answers = [real.generation.Generate(greedy(chat(question), 32)).completions[0] for question in QUESTIONS]
    prompts = [
        [token.id for token in real.generation.Tokenize(pb.TokenizeRequest(model="chat", prompt=chat(question))).tokens]
        for question in QUESTIONS
    ]
    expected = offline(real.directories["chat"], {"prompts": prompts, "max_tokens": 32})
    assert [answer.text for answer in answers] == expected["texts"]
    assert [list(answer.token_ids) for answer in answers] == expected["token_ids"]
    assert "Paris" in answers[0].text


def test_a_stream_adds_up_to_the_unary_answer(real):
    whole = real.generation.Generate(greedy(chat(QUESTIONS[0]), 24)).completions[0]
    sampling = pb.SamplingParams(max_tokens=24, temperature=0)
    messages = list(
        real.generation.GenerateStream(pb.GenerateRequest(model="chat", prompt=chat(QUESTIONS[0]), sampling=sampling))
    )
    assert "".join(message.completions[0].text for message in messages) == whole.text
    assert [id_ for message in messages for id_ in message.completions[0].token_ids] == list(whole.token_ids)
    assert len(messages) > 3
    assert messages[-1].completions[0].finish_reason == whole.finish_reason == pb.FINISH_REASON_STOP
    assert messages[-1].usage.completion_tokens == len(whole.token_ids)


def test_stop_strings_are_left_out_and_named(real):
    completion = real.generation.Generate(greedy(chat(QUESTIONS[0]), 24, stop=["Paris"])).completions[0]
    assert completion.finish_reason == pb.FINISH_REASON_STOP
    assert completion.stop_text == "Paris"
    assert "Paris" not in completion.text


def test_several_completions_by_seed(real):
    sampling = pb.SamplingParams(max_tokens=12, n=3, seed=7, temperature=1.5)
    request = pb.GenerateRequest(model="chat", prompt=chat("Tell me a story."), sampling=sampling)
    first, second = real.generation.Generate(request), real.generation.Generate(request)
    assert [one.index for one in first.completions] == [0, 1, 2]
    assert len({one.text for one in first.completions}) > 1
    assert [one.text for one in first.completions] == [one.text for one in second.completions]
    assert first.usage.completion_tokens == sum(len(one.token_ids) for one in first.completions)


def test_a_seed_holds_for_a_prompt_that_is_read_in_many_steps(real):
    """vLLM's own engine would end: generators of CPUs have no offset that could be taken back."""
    ids = [1000 + 7 * number % 5000 for number in range(1500)]
    sampling = pb.SamplingParams(max_tokens=6, seed=4, temperature=1.0, ignore_eos=True)
    asked = pb.GenerateRequest(model="chat", prompt=pb.Prompt(token_ids=pb.TokenIds(ids=ids)), sampling=sampling)
    other = pb.SamplingParams(max_tokens=400, ignore_eos=True)
    stream = real.generation.GenerateStream(
        pb.GenerateRequest(model="chat", prompt=pb.Prompt(text="Once"), sampling=other)
    )
    next(stream)
    answer = real.generation.Generate(asked)
    stream.cancel()
    assert len(answer.completions[0].token_ids) == 6


def test_the_first_of_several_completions_is_whole(real):
    """The engine tells when it has read its prompt: for the others, and before it goes on."""
    prompt = pb.Prompt(text="One, two, three, four,")
    options = {"max_tokens": 24, "top_k": 1, "temperature": 1.0, "logprobs": 2, "prompt_logprobs": 0, "stop": ["seven"]}
    samplings = [pb.SamplingParams(n=n, **options) for n in (1, 2)]
    asked = [pb.GenerateRequest(model="chat", prompt=prompt, sampling=one) for one in samplings]
    alone, both = (real.generation.Generate(one) for one in asked)
    [one], [first, second] = alone.completions, both.completions
    assert one.stop_text == first.stop_text == "seven"
    assert (first.text, first.token_ids) == (one.text, one.token_ids)
    assert [entry.token_id for entry in first.logprobs] == list(first.token_ids) == list(second.token_ids)
    assert [len(entry.alternatives) for entry in first.logprobs] == [2] * len(one.logprobs)
    assert [entry.token_id for entry in both.prompt_logprobs] == [entry.token_id for entry in alone.prompt_logprobs]


def test_logprobs_equal_transformers(real):
    from transformers import AutoModelForCausalLM

    ids = [
        token.id
        for token in real.generation.Tokenize(pb.TokenizeRequest(model="chat", prompt=chat(QUESTIONS[0]))).tokens
    ]
    request = greedy(pb.Prompt(token_ids=pb.TokenIds(ids=ids)), 1, logprobs=3, prompt_logprobs=0)
    response = real.generation.Generate(request)
    model = AutoModelForCausalLM.from_pretrained(real.directories["chat"], dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert [entry.token_id for entry in response.prompt_logprobs] == ids[1:]
    found = torch.tensor([entry.logprob for entry in response.prompt_logprobs])
    # The engine computes in bfloat16, with two to three decimal digits; a shift by one place gives whole units.
    difference = (found - expected[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]).abs()
    assert difference.mean() < 0.15
    [entry] = response.completions[0].logprobs
    assert len(entry.alternatives) == 3
    assert entry.alternatives[0].token_id == entry.token_id == int(expected[-1].argmax())
    assert entry.alternatives[0].logprob >= entry.alternatives[1].logprob >= entry.alternatives[2].logprob


def test_a_prompt_past_the_models_length_is_refused(real):
    prompt = pb.Prompt(token_ids=pb.TokenIds(ids=[5] * 10_000))
    with pytest.raises(grpc.RpcError) as caught:
        real.generation.Generate(greedy(prompt, 1))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "has 10000 entries; allowed: 8192" in caught.value.details()


def test_max_tokens_is_reached_exactly(real):
    completion = real.generation.Generate(greedy(chat("Tell me a story."), 5, ignore_eos=True)).completions[0]
    assert len(completion.token_ids) == 5
    assert completion.finish_reason == pb.FINISH_REASON_LENGTH


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,9}$"},
        "age": {"type": "integer", "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
GRAMMAR = 'root ::= answer "!"\nanswer ::= "yes" | "no"'
# None is caught before the engine: the last, that no token is left, only when it runs.
BROKEN = {
    "grammar": {"structured_output": pb.StructuredOutput(grammar="root ::= missing CANARY (")},
    "schema": {"structured_output": pb.StructuredOutput(json_schema='{"$ref": "#/$defs/CANARY"}')},
    "regex": {"structured_output": pb.StructuredOutput(regex="(?<=CANARY)b")},
    "no token": {"structured_output": pb.StructuredOutput(regex="[0-9]{5}CANARY"), "allowed_token_ids": [70]},
}


def formed(question: str, max_tokens: int = 60, **form) -> pb.GenerateRequest:
    return greedy(chat(question), max_tokens, structured_output=pb.StructuredOutput(**form))


def test_answers_have_the_form_asked_for(real):
    def answer(**form) -> str:
        completion = real.generation.Generate(formed("Tell me about yourself.", **form)).completions[0]
        assert completion.finish_reason == pb.FINISH_REASON_STOP
        return completion.text

    jsonschema.validate(json.loads(answer(json_schema=json.dumps(PERSON))), PERSON)
    assert re.fullmatch(DATE, answer(regex=DATE))
    assert answer(choice=pb.Choice(options=["東京", 'a "quoted" word'])) in ("東京", 'a "quoted" word')
    assert answer(grammar=GRAMMAR) in ("yes!", "no!")


def test_a_form_holds_for_every_completion_and_in_streams(real):
    sampling = pb.SamplingParams(max_tokens=60, n=3, seed=1, structured_output=pb.StructuredOutput(regex=DATE))
    texts = dict.fromkeys(range(3), "")
    stream = real.generation.GenerateStream(pb.GenerateRequest(model="chat", prompt=chat("When?"), sampling=sampling))
    for message in stream:
        for completion in message.completions:
            texts[completion.index] += completion.text
    assert all(re.fullmatch(DATE, text) for text in texts.values()), texts


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_malformed_form_fails_that_request_only(real, broken):
    alone = real.generation.Generate(greedy(chat("Tell me a story."), 40)).completions[0].text
    before = real.server.log.stat().st_size
    neighbours: list[str] = []

    def neighbour() -> None:
        neighbours.append(real.generation.Generate(greedy(chat("Tell me a story."), 40)).completions[0].text)

    threads = [threading.Thread(target=neighbour) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        with pytest.raises(grpc.RpcError) as caught:
            real.generation.Generate(greedy(chat("Hello."), 8, **broken))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
        assert caught.value.details().startswith("sampling.structured_output")
        assert "CANARY" not in caught.value.details()
    for thread in threads:
        thread.join()
    assert neighbours == [alone, alone]
    assert "CANARY" not in real.server.log.read_bytes()[before:].decode(errors="replace")


def test_tokens_are_biased_forbidden_and_allowed(real):
    def text(**fields) -> pb.Completion:
        return real.generation.Generate(greedy(chat(QUESTIONS[0]), 8, **fields)).completions[0]

    plain = text()
    paris = plain.token_ids[
        real.generation.Generate(greedy(chat(QUESTIONS[0]), 8, stop=["Paris"])).usage.completion_tokens - 1
    ]
    assert "Paris" in plain.text
    assert paris not in text(logit_bias={paris: -100}).token_ids
    assert "Paris" not in text(bad_words=["Paris"]).text
    assert set(text(allowed_token_ids=[paris]).token_ids) == {paris}
    assert text(stop_token_ids=[paris]).token_ids[-1] == paris
    assert text(stop=["Paris"], include_stop_text=True).text.endswith("Paris")
    ended = real.generation.Generate(greedy(chat(QUESTIONS[0]), 40, skip_special_tokens=False)).completions[0]
    assert ended.text.startswith(plain.text)
    assert ended.finish_reason == pb.FINISH_REASON_STOP
