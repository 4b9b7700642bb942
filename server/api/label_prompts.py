"""What a generation model is asked for a label: as a chat by the checkpoint's own template, or as plain text.

Also how the model would write each label there, in tokens. Knows the tokenizer, and nothing of the engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneserve.server.api import classification_messages as convert
from tuneserve.server.api.checks import check_count, check_text, check_unset
from tuneserve.server.call.errors import InvalidInput
from tuneserve.server.text.tokenizer import TemplateRefused, Tokenizer, Tokens
from tuneserve.v1 import classification_pb2 as pb

MOST_LABELS = 256
LONGEST_LABEL = 64  # tokens
_LONGEST_LABEL = 512  # characters
# No labels of a call make more tokens than this, with what goes around them.
_NO_LIMIT = 1 << 20

_INSTRUCTION = "Classify the text."
# What stands for a text and for a label where only what is around them matters.
_TEXT = "text"
_LABEL = "label"


@dataclass(frozen=True)
class Question:
    """What a call asks of each of its texts."""

    instruction: str
    labels: Sequence[str]
    examples: Sequence[tuple[str, str]]  # text and label

    @classmethod
    def of(cls, request: pb.ClassifyRequest, max_inputs: int) -> "Question":
        """Returns a request's question. Raises InvalidInput."""
        if len(request.labels) < 2:
            what = f"has {len(request.labels)} entries; a generation model chooses from 2 to {MOST_LABELS}"
            raise InvalidInput("labels", what)
        check_count("labels", len(request.labels), MOST_LABELS)
        labels: dict[str, int] = {}
        for index, label in enumerate(request.labels):
            field = f"labels[{index}]"
            if len(label) > _LONGEST_LABEL:
                raise InvalidInput(field, f"has {len(label)} characters; allowed: {_LONGEST_LABEL}")
            check_text(field, label)
            if label != label.strip():
                raise InvalidInput(field, "begins or ends with a space")
            if label in labels:
                raise InvalidInput(field, f"is a duplicate of labels[{labels[label]}]")
            labels[label] = index
        if request.examples:
            check_count("examples", len(request.examples), max_inputs)
        for index, example in enumerate(request.examples):
            check_text(f"examples[{index}].text", example.text)
            if example.label not in labels:
                raise InvalidInput(f"examples[{index}].label", "is none of the labels of the call")
        if request.HasField("instruction"):
            check_text("instruction", request.instruction)
        for index, one in enumerate(request.inputs):
            if one.HasField("text_pair"):
                raise InvalidInput(f"inputs[{index}].text_pair", "is for models trained on pairs")
        convert.truncation(request.truncation, windows=False)
        check_unset(request, ["windows"], "is not for generation models")
        return cls(
            request.instruction or _INSTRUCTION,
            list(labels),
            [(example.text, example.label) for example in request.examples],
        )

    def messages(self, text: str, system: bool) -> list[dict[str, str]]:
        """Returns the question as a chat. Where templates know no system, the task goes before the first text."""
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


# For what is around a text and a label.
_BARE = Question(_INSTRUCTION, (), ())


@dataclass(frozen=True)
class Form:
    """How the question is put to one model."""

    question: Question
    tokenizer: Tokenizer
    chat: bool
    system: bool = False
    opening: str = ""  # what the model's turn begins with, behind the template's prompt
    lead: str = " "  # white space between this and the label, which is the label's first token's
    after: str = "\n"  # what follows the label

    @classmethod
    async def of(cls, tokenizer: Tokenizer, question: Question) -> "Form":
        """Returns the form that the checkpoint's chat template takes; plain text without one, or if it takes none."""
        for system in (True, False) if tokenizer.has_chat_template else ():
            messages = _BARE.messages(_TEXT, system)
            try:
                prompt = await tokenizer.render(messages, True)
                whole = await tokenizer.render([*messages, {"role": "assistant", "content": _LABEL}], False)
            except TemplateRefused:
                continue
            before, found, after = whole.removeprefix(prompt).partition(_LABEL)
            if not whole.startswith(prompt) or not found:
                # The label then follows the prompt, and the end token the label.
                before = after = ""
            opening = before.rstrip()
            return cls(question, tokenizer, True, system, opening, before[len(opening) :], after)
        return cls(question, tokenizer, False)

    async def prompt(self, text: str, most: int) -> Tokens:
        """Returns the tokens before the label, if they are `most` or fewer: see Tokenizer.encode. Raises InvalidInput
        when the template takes no such chat.
        """
        try:
            whole = await self._prompt(text)
        except TemplateRefused as error:
            raise InvalidInput("examples", str(error)) from None
        [tokens] = await self.tokenizer.encode([whole], special_tokens=not self.chat, most=most)
        return tokens

    async def label_tokens(self) -> list[list[int]]:
        """Returns the ids of each label, and of the token behind it, as they are behind a prompt.

        The prompt's end is all that matters to them: the call's own may be long, and would be tokenized for each label.
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
                # The label's beginning would melt into the prompt's end, which is the same for all labels.
                [tokens] = await self.tokenizer.encode([tail], special_tokens=False)
                start = shift = 0
            found.append(self._ids(tokens, start, shift + end))
        return found

    async def _prompt(self, text: str) -> str:
        if not self.chat:
            return self.question.text(text)
        return await self.tokenizer.render(self.question.messages(text, self.system), True) + self.opening

    def _ids(self, tokens: Tokens, start: int, end: int) -> list[int]:
        """The ids from `start` to the first token past the place `end`; the end token where there is none."""
        ids: list[int] = []
        for index in range(start, tokens.length):
            ids.append(tokens.encoded.token_ids[index])
            if tokens.offsets[index][0] >= end:
                return ids
        end_token = self.tokenizer.end_token
        return ids if end_token is None else [*ids, end_token]
