"""What the values of a training file may be: the types of the fields in config.py."""

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from tuneserve.formats import FORMATS
from tuneserve.settings import Count, Listed, Refused, Text

T = TypeVar("T")

# fmt: off
Column = Literal[
    "text", "text_pair", "label", "labels", "head", "tail", "tokens", "tags", "entities", "messages", "tools",
    "documents", "prompt", "completion", "chosen", "rejected", "query", "positive", "negatives",
]
# fmt: on


def number_from_text(value: Any) -> Any:
    """Returns the number if a text is one: YAML 1.1 reads 2e-4 (no dot) as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def template_columns(template: str) -> list[str]:
    """Returns the {columns} of a `prompt_template`."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _template(text: str) -> str:
    try:
        names = template_columns(text)
    except ValueError:
        names = []
    if not names or not all(name.isidentifier() for name in names):
        raise Refused(f"{text!r} is not allowed", "allowed: text with {columns} of your rows in it")
    return text


def _different(texts: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise Refused(f"{twice!r} is a duplicate", "allowed: a list of different texts")
    return texts


def _local(text: str, info: ValidationInfo) -> Path:
    return ((info.context or Path()) / Path(text).expanduser()).resolve()


def _output(value: object, info: ValidationInfo) -> object:
    return _local(value, info) if isinstance(value, str) and value.strip() else value


def _path_or_id(text: str, info: ValidationInfo) -> str:
    """A hub id stays as it is; whatever exists, or is written like a path, becomes an absolute path."""
    path = _local(text, info)
    looks_local = text.startswith((".", "/", "~")) or path.suffix in FORMATS
    return str(path) if path.exists() or looks_local else text


def _jinja(text: str, info: ValidationInfo) -> str:
    """Returns a template that is given as text, or as the path of a file."""
    if "{{" in text or "{%" in text:
        return text
    path = _local(text, info)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise Refused(f"{path}: {reason}", "give a file of Jinja, or the template itself") from None


def _balanced_or_weights(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    # One error in place of one for each of the two forms.
    try:
        return check(value)
    except ValidationError:
        raise Refused(
            f"{value!r} is not allowed", "allowed: balanced, or a mapping of labels to numbers above 0"
        ) from None


Template = Annotated[Text, AfterValidator(_template)]
Jinja = Annotated[Text, AfterValidator(_jinja)]
PathOrId = Annotated[Text, AfterValidator(_path_or_id)]
LocalText = Annotated[Text, AfterValidator(lambda text, info: str(_local(text, info)))]
Output = Annotated[Path, BeforeValidator(_output)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(_different), Listed]
Pooling = Literal["mean", "cls", "last-token"]
Prompts = Mapping[Literal["query", "passage"], Text]
Sizes = Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(_different), Listed]
Number = BeforeValidator(number_from_text)
Share = Annotated[float, Field(gt=0, le=0.9), Number]
Part = Annotated[float, Field(ge=0, le=0.9), Number]
Ratio = Annotated[float, Field(ge=0, le=1), Number]
_Weights = Annotated[Mapping[Text, Annotated[float, Field(gt=0, le=1000)]], Field(min_length=1)]
Trackers = Annotated[tuple[Literal["wandb", "mlflow"], ...], Field(min_length=1), AfterValidator(_different), Listed]
AnswerMetrics = Annotated[
    tuple[Literal["chrf", "bleu", "rouge"], ...], Field(min_length=1), AfterValidator(_different), Listed
]
ClassWeights = Annotated[Literal["balanced"] | _Weights | None, WrapValidator(_balanced_or_weights)]
