"""Packages that can be called: `tuneserve.finetune(config)`, beside `tuneserve.finetune.pipeline` and the rest.

A package and a function of one name would hide each other, by which was imported last. So the package is the function:
Python lets a module have a class of its own (reference, "Customizing module attribute access"). For type checkers the
names are functions (tuneserve/__init__.py); imports of modules inside the packages are not affected.
"""

import inspect
from types import ModuleType
from typing import Any


class Verb(ModuleType):
    """A package that does, when it is called, what the function of its name in api.py does."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function()(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        """What editors and notebooks show."""
        return inspect.signature(self._function())

    def _function(self) -> Any:
        from tuneserve import api

        return getattr(api, self.__name__.rpartition(".")[2])
