"""What a generation model is asked for a label, with real tokenizers and chat templates."""

from collections.abc import Callable, Iterator

import pytest

from tuneserve.server.api.label_prompts import MOST_LABELS, Form, Question, check_question
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.text.tokenizer import Tokenizer
from tuneserve.v1 import classification_pb2 as pb

LABELS = ["good", "good film", "bad"]
TASK = "Say how it was.\nAnswer with one of these labels and nothing else: good, good film, bad"
QUESTION = Question("Say how it was.", LABELS, [("so dull", "bad")])
NO_SYSTEM = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OPENING = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}<think></think>\n\n{% endif %}{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ONE_QUESTION = "{% if messages | length > 3 %}{{ raise_exception('one question alone') }}{% endif %}" + OPENING
# Its answers begin with the beginning of a word.
MELTING = (
    "{% for message in messages %}<|{{ message.role }}|>{% if message.role == 'assistant' %} wa{% endif %}"
    "{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|> wa{% endif %}"
)
NO_CHAT = "{{ raise_exception('nothing at all') }}"


def request(*labels: str, **fields) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model="m", inputs=[pb.ClassifyInput(text="a")], labels=labels, **fields)


@pytest.fixture
def tokenizer(make_llama) -> Iterator[Callable[[str | None], Tokenizer]]:
    """Makes a tokenizer with a chat template, or without one."""
    made: list[Tokenizer] = []

    def make(template: str | None) -> Tokenizer:
        made.append(Tokenizer(make_llama(template), 400))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_request_is_a_question():
    examples = [pb.ClassifyExample(text="so dull", label="bad")]
    assert Question.of(request(*LABELS, instruction="Say how it was.", examples=examples)) == QUESTION
    plain = Question.of(request("a", "b"))
    assert (plain.instruction, plain.labels, plain.examples) == ("Classify the text.", ["a", "b"], [])


@pytest.mark.parametrize(
    ("given", "field", "what"),
    [
        (request("a"), "labels", "from 2 to 256"),
        (request(*map(str, range(MOST_LABELS + 1))), "labels", "from 2 to 256"),
        (request("a", "x" * 513), "labels[1]", "has 513 characters"),
        (request("a", " "), "labels[1]", "blank"),
        (request("a", "b "), "labels[1]", "begins or ends with a space"),
        (request("a", "b", "a"), "labels[2]", "is a duplicate of labels[0]"),
        (request("a", "b", examples=[pb.ClassifyExample(text="x", label="a")] * 2), "examples", "allowed: 0 to 1"),
        (request("a", "b", examples=[pb.ClassifyExample(label="a")]), "examples[0].text", "blank"),
        (
            request("a", "b", examples=[pb.ClassifyExample(text="x", label="c")]),
            "examples[0].label",
            "is not one of the",
        ),
        (request("a", "b", instruction=" "), "instruction", "blank"),
    ],
)
def test_what_is_no_question_is_refused_by_field(given, field, what):
    with pytest.raises(InvalidInput) as caught, Violations() as wrong:
        check_question(wrong, given, 1)
    assert caught.value.field == field
    assert what in caught.value.description


def test_a_pair_is_no_question():
    given = request("a", "b")
    given.inputs.add(text="a", text_pair="b")
    expected = r"^inputs\[1\]\.text_pair: is for models trained on pairs"
    with pytest.raises(InvalidInput, match=expected), Violations() as wrong:
        check_question(wrong, given, 2)


def test_the_task_stands_before_all_texts():
    shown = [{"role": "user", "content": "so dull"}, {"role": "assistant", "content": "bad"}]
    asked = {"role": "user", "content": "it was"}
    assert QUESTION.messages("it was", system=True) == [{"role": "system", "content": TASK}, *shown, asked]
    first = {"role": "user", "content": f"{TASK}\n\nso dull"}
    assert QUESTION.messages("it was", system=False) == [first, shown[1], asked]
    assert QUESTION.text("it was") == f"{TASK}\n\nText: so dull\nLabel: bad\n\nText: it was\nLabel:"


@pytest.mark.parametrize(
    ("template", "chat", "system", "opening", "lead"),
    [
        (None, False, False, "", " "),
        (NO_CHAT, False, False, "", " "),
        (NO_SYSTEM, True, False, "", ""),
        (OPENING, True, True, "<think></think>", "\n\n"),
    ],
    ids=["no template", "no chat", "no system", "opening"],
)
async def test_the_form_is_what_the_template_takes(tokenizer, template, chat, system, opening, lead):
    form = await Form.of(tokenizer(template), QUESTION)
    assert (form.chat, form.system, form.opening, form.lead) == (chat, system, opening, lead)
    assert form.after == ("<|end|>" if chat else "\n")


@pytest.mark.parametrize("template", [None, NO_SYSTEM, OPENING], ids=["no template", "no system", "opening"])
async def test_a_label_is_written_as_it_stands_behind_the_prompt(tokenizer, template):
    """With the token behind it, which tells a label from one that goes on."""
    own = tokenizer(template)
    form = await Form.of(own, QUESTION)
    before = await form.prompt("the film was", 400)
    for label, ids in zip(LABELS, await form.label_tokens(), strict=True):
        if template is None:
            text = QUESTION.text("the film was") + f" {label}\n"
        else:
            asked = QUESTION.messages("the film was", form.system)
            text = await own.render([*asked, {"role": "assistant", "content": label}], False)
        [whole] = await own.encode([text], special_tokens=template is None)
        assert [*before.encoded.token_ids, *ids] == list(whole.encoded.token_ids), label


async def test_a_label_that_melts_into_the_prompt_is_taken_by_itself(tokenizer):
    own = tokenizer(MELTING)
    [wa], [was] = await own.encode([" wa"]), await own.encode([" was"])
    assert list(was.encoded.token_ids[: wa.length]) != list(wa.encoded.token_ids), "or nothing melts"
    form = await Form.of(own, Question("", ["s", "d"], []))
    [alone] = await own.encode(["s<|end|>"], special_tokens=False)
    assert (await form.label_tokens())[0] == list(alone.encoded.token_ids)


async def test_a_prompt_that_the_template_refuses_is_the_examples_fault(tokenizer):
    form = await Form.of(tokenizer(ONE_QUESTION), QUESTION)
    with pytest.raises(InvalidInput, match=r"^examples: ") as caught:
        await form.prompt("secret words", 400)
    assert "secret" not in str(caught.value)


async def test_a_long_text_is_known_to_be_too_long(tokenizer):
    form = await Form.of(tokenizer(None), QUESTION)
    assert not (await form.prompt("x", 400)).truncated
    # Nobody counts to its end.
    long = await form.prompt("x " * 4000, 300)
    assert (long.length, long.truncated) == (301, True)
