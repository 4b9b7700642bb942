"""What is said of a wrong value in any settings file: one line with the key's path, and a hint with what is allowed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from pydantic import Field, model_validator

from tuneserve import settings
from tuneserve.errors import UserError
from tuneserve.settings import Count, Local, Named, Refused, Settings, Text, Texts


class Inner(Settings):
    path: Local
    name: Text = "x"
    share: float | None = Field(default=None, gt=0, le=1)
    words: Texts = ()


class Outer(Settings):
    inner: Annotated[Mapping[str, Inner], Named] = Field(default={})
    one: Inner | None = None
    count: Count = 1
    size: int = 0
    kind: Literal["a", "b"] = "a"
    switch: bool = False
    seconds: float = Field(default=1.0, ge=0)
    anything: Mapping[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _together(self) -> "Outer":
        if self.switch and self.kind == "b":
            raise Refused("both switch and b are given", "give one of them")
        if self.switch and self.size:
            raise Refused("is given", key="size")
        return self


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ([], "f: expected a mapping of keys to values, found list", ""),
        ({"counts": 1}, "f: unknown key 'counts'", "did you mean count?"),
        ({"one": {"path": "p", "pth": 1}}, "f: one: unknown key 'pth'", "did you mean path?"),
        ({"one": {"pth": 1}}, "f: one: unknown key 'pth'", "did you mean path?"),
        ({"one": {"zzz": 1}}, "f: one: unknown key 'zzz'", "allowed: path, name, share, words"),
        ({1: 1}, "f: unknown key 1", "allowed: inner, one, count, size, kind, switch, seconds, anything"),
        ({"one": {}}, "f: one: path is missing", "path: text"),
        ({"count": "8"}, "f: count: expected a whole number, found '8'", "allowed: a whole number, 1 or more"),
        ({"count": True}, "f: count: expected a whole number, found True", "allowed: a whole number, 1 or more"),
        ({"count": 0}, "f: count: 0 is not allowed", "allowed: a whole number, 1 or more"),
        ({"count": 1.0}, "f: count: expected a whole number, found 1.0", "allowed: a whole number, 1 or more"),
        ({"count": None}, "f: count: expected a whole number, found None", "allowed: a whole number, 1 or more"),
        ({"size": "8"}, "f: size: expected a whole number, found '8'", "allowed: a whole number"),
        ({"kind": "c"}, "f: kind: 'c' is not allowed", "allowed: one of a, b"),
        ({"kind": 1}, "f: kind: 1 is not allowed", "allowed: one of a, b"),
        ({"switch": "yes"}, "f: switch: expected true or false, found 'yes'", "allowed: true or false"),
        ({"seconds": "fast"}, "f: seconds: expected a number, found 'fast'", "allowed: a number, 0 or more"),
        ({"seconds": float("inf")}, "f: seconds: inf is not allowed", "allowed: a number, 0 or more"),
        ({"seconds": float("nan")}, "f: seconds: nan is not allowed", "allowed: a number, 0 or more"),
        ({"one": 5}, "f: one: expected a mapping of keys to values, found int", ""),
        ({"inner": {"a": 5}}, "f: inner.a: expected a mapping of keys to values, found int", ""),
        (
            {"inner": {"a": {"path": "p", "share": 0}}},
            "f: inner.a.share: 0 is not allowed",
            "allowed: a number, above 0, at most 1",
        ),
        (
            {"one": {"path": "p", "words": ["a", True]}},
            "f: one.words[1]: expected text, found True",
            "allowed: text (quote words such as yes, no and numbers)",
        ),
        ({"one": {"path": "p", "words": "a"}}, "f: one.words: expected a list, found 'a'", "allowed: a list of text"),
        ({"one": {"path": "p", "name": " "}}, "f: one.name: ' ' is not allowed", "allowed: text"),
        ({"one": {"path": ["p"]}}, "f: one.path: expected text, found ['p']", "allowed: text"),
        ({"inner": {"a\nb": 5}}, "f: inner.'a\\nb': expected a mapping of keys to values, found int", ""),
        ({"switch": True, "kind": "b"}, "f: both switch and b are given", "give one of them"),
        ({"switch": True, "size": 1}, "f: size: is given", ""),
    ],
)
def test_what_is_wrong_is_said_in_one_line(values: object, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        settings.build(Outer, values, "f")
    assert (str(caught.value), caught.value.hint) == (message, hint)


def test_what_is_right_is_built(tmp_path: Path) -> None:
    values = {"one": {"path": "p", "words": ["a"], "share": 1}, "inner": {1: {"path": "/q"}}, "seconds": 3}
    built = settings.build(Outer, values, "f", tmp_path)
    assert built.one == Inner(path=tmp_path / "p", words=("a",), share=1.0)
    assert built.inner == {"1": Inner(path=Path("/q"))}, "a name may look like a number"
    assert isinstance(built.seconds, float)
    assert built == settings.build(Outer, dict(built))


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates() | st.binary(max_size=3)
)
keys = st.sampled_from([*Outer.model_fields, *Inner.model_fields, "1"]) | st.integers() | st.text(max_size=3)
documents = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.sets(st.integers()))


@how(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(keys, documents) | documents)
def test_whatever_a_file_says_it_is_settings_or_one_line(values: object) -> None:
    said = "f: "
    try:
        settings.build(Outer, values, "f")
    except UserError as error:
        said = f"{error} {error.hint}"
    assert said.startswith("f: ")
    assert len(said.splitlines()) == 1
    assert "pydantic" not in said


def test_all_that_is_wrong_is_listed_where_it_is_asked_for() -> None:
    found = settings.problems(Outer, {"count": 0, "kind": "c", "more": 1}, "here")
    assert [str(one) for one in found] == [
        "here: unknown key 'more'",
        "here: count: 0 is not allowed",
        "here: kind: 'c' is not allowed",
    ]
    assert settings.problems(Outer, {"count": 2}) == []
