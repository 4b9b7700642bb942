"""Prompts that ask a generation model for a label: a chat by the checkpoint's own template, or plain text.

Also gives the tokens with which the model would write each label. Knows the tokenizer, and nothing of the engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneserve.server.api import classification_messages as convert
from tuneserve.server.api.checks import BLANK, check_count, check_text
from tuneserve.server.call.errors import InvalidInput, Violations
from tuneserve.server.text.tokenizer import TemplateRefused, Tokenizer, Tokens
from tuneserve.v1 import classification_pb2 as pb

MOST_LABELS = 256
LONGEST_LABEL = 64  # tokens
_LONGEST_LABEL = 512  # characters
# More tokens than all labels of a call and the prompt around them can have.
_NO_LIMIT = 1 << 20

_INSTRUCTION = "Classify the text."
# Placeholders for a text and a label, to find out what a template writes around them.
_TEXT = "text"
_LABEL = "label"


@dataclass(frozen=True)
class Question:
    """The instruction, labels and examples of a call, for each of its texts."""

    instruction: str
    labels: Sequence[str]
    examples: Sequence[tuple[str, str]]  # text and label

    @classmethod
    def of(cls, request: pb.ClassifyRequest) -> "Question":
        """Returns the question of a checked request."""
        return cls(
            request.instruction or _INSTRUCTION,
            list(request.labels),
            [(example.text, example.label) for example in request.examples],
        )

    def messages(self, text: str, system: bool) -> list[dict[str, str]]:
        """Returns the question as a chat. Without a system role, the task goes before the first text."""
        chat = [
            message
            for one, label in self.examples
            for message in ({"role": "user", "content": one}, {"role": "assistant", "content": label})
        ]
        chat.append({"role": "user", "content": text})
        if system:
            return [{"role": "system", "content": self._task()}, *chat]
        chat[0]["content"] = f"{self._task()}\n\n{chat[0]['content']}"
        return chat

    def text(self, text: str) -> str:
        """Returns the question as plain text that ends where the label goes, without the space before it."""
        shown = "".join(f"Text: {one}\nLabel: {label}\n\n" for one, label in self.examples)
        return f"{self._task()}\n\n{shown}Text: {text}\nLabel:"

    def _task(self) -> str:
        return f"{self.instruction}\nAnswer with one of these labels and nothing else: {', '.join(self.labels)}"


def check_question(wrong: Violations, request: pb.ClassifyRequest, max_inputs: int) -> None:
    """Checks a request's question, and that its texts are no pairs."""
    count, labels = len(request.labels), dict[str, int]()
    what = f"has {count} entries; a generation model chooses from 2 to {MOST_LABELS}"
    if count > MOST_LABELS:
        # Examples and thresholds are checked against the labels.
        raise InvalidInput("labels", what)
    if count < 2:
        wrong.add("labels", what)
    for index, label in enumerate(request.labels):
        field = f"labels[{index}]"
        if len(label) > _LONGEST_LABEL:
            wrong.add(field, f"has {len(label)} characters; allowed: {_LONGEST_LABEL}")
        elif not label.strip():
            wrong.add(field, BLANK)
        elif label != label.strip():
            wrong.add(field, "begins or ends with a space")
        elif label in labels:
            wrong.add(field, f"is a duplicate of labels[{labels[label]}]")
        labels.setdefault(label, index)
    if check_count(wrong, "examples", len(request.examples), max_inputs, least=0):
        for index, example in enumerate(request.examples):
            check_text(wrong, f"examples[{index}].text", example.text)
            if example.label not in labels:
                wrong.add(f"examples[{index}].label", "is not one of the call's labels")
    if request.HasField("instruction"):
        check_text(wrong, "instruction", request.instruction)
    convert.check_no_pairs(wrong, request, max_inputs, "is for models trained on pairs")


# For rendering a template with the placeholders.
_BARE = Question(_INSTRUCTION, (), ())


@dataclass(frozen=True)
class Form:
    """How the question is written for one model."""

    question: Question
    tokenizer: Tokenizer
    chat: bool
    system: bool = False
    opening: str = ""  # the beginning of the model's turn, after the template's prompt
    lead: str = " "  # white space before the label; it belongs to the label's first token
    after: str = "\n"  # what follows the label

    @classmethod
    async def of(cls, tokenizer: Tokenizer, question: Question) -> "Form":
        """Returns the form that the checkpoint's chat template accepts, or plain text if there is none."""
        for system in (True, False) if tokenizer.has_chat_template else ():
            messages = _BARE.messages(_TEXT, system)
            try:
                prompt = await tokenizer.render(messages, True)
                whole = await tokenizer.render([*messages, {"role": "assistant", "content": _LABEL}], False)
            except TemplateRefused:
                continue
            before, found, after = whole.removeprefix(prompt).partition(_LABEL)
            if not whole.startswith(prompt) or not found:
                # Assume that the label directly follows the prompt, and the end token the label.
                before = after = ""
            opening = before.rstrip()
            return cls(question, tokenizer, True, system, opening, before[len(opening) :], after)
        return cls(question, tokenizer, False)

    async def prompt(self, text: str, most: int) -> Tokens:
        """Returns the tokens before the label, if they are `most` or fewer: see Tokenizer.encode. Raises InvalidInput
        if the template refuses the chat.
        """
        try:
            whole = await self._prompt(text)
        except TemplateRefused as error:
            raise InvalidInput("examples", str(error)) from None
        [tokens] = await self.tokenizer.encode([whole], special_tokens=not self.chat, most=most)
        return tokens

    async def label_tokens(self) -> list[list[int]]:
        """Returns the ids of each label, and of the token after it, as they are after a prompt.

        Only the end of the prompt matters for that, so a short one is used: the call's own may be long, and would be
        tokenized for each label.
        """
        prompt = await replace(self, question=_BARE)._prompt(_TEXT)
        tails = [f"{self.lead}{label}{self.after}" for label in self.question.labels]
        ends = [len(self.lead) + len(label) for label in self.question.labels]
        [before, *wholes] = await self.tokenizer.encode(
            [prompt, *(prompt + tail for tail in tails)], special_tokens=not self.chat, most=_NO_LIMIT
        )
        found = []
        for tail, end, whole in zip(tails, ends, wholes, strict=True):
            start, known = before.length, list(before.encoded.token_ids)
            tokens, shift = whole, len(prompt)
            if list(whole.encoded.token_ids[:start]) != known:
                # The label would share a token with the prompt's end: tokenize it alone, as the prompt is the same for
                # all labels.
                [tokens] = await self.tokenizer.encode([tail], special_tokens=False)
                start = shift = 0
            found.append(self._ids(tokens, start, shift + end))
        return found

    async def _prompt(self, text: str) -> str:
        if not self.chat:
            return self.question.text(text)
        return await self.tokenizer.render(self.question.messages(text, self.system), True) + self.opening

    def _ids(self, tokens: Tokens, start: int, end: int) -> list[int]:
        """Returns the ids from `start` to the first token past the offset `end`, or the end token if there is none."""
        ids: list[int] = []
        for index in range(start, tokens.length):
            ids.append(tokens.encoded.token_ids[index])
            if tokens.offsets[index][0] >= end:
                return ids
        end_token = self.tokenizer.end_token
        return ids if end_token is None else [*ids, end_token]
