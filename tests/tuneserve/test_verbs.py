"""Packages that are functions, too."""

import inspect

import tuneserve
from tuneserve import api


def test_packages_are_their_functions() -> None:
    for name in ("finetune", "quantize"):
        assert inspect.signature(getattr(tuneserve, name)) == inspect.signature(getattr(api, name))
        assert inspect.ismodule(getattr(tuneserve, name))
