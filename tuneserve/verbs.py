"""Packages that can be called: `tuneserve.finetune(config)`, beside `tuneserve.finetune.pipeline` and the rest.

A package and a function of the same name would hide each other, depending on which was imported last. So the package
itself is callable: Python lets a module have its own class (reference, "Customizing module attribute access"). For type
checkers the names are functions (tuneserve/__init__.py); imports of modules inside the packages are not affected.
"""

import inspect
from types import ModuleType
from typing import Any


class Verb(ModuleType):
    """A package that, when it is called, runs the function of the same name in api.py."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function()(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature that editors and notebooks show."""
        return inspect.signature(self._function())

    def _function(self) -> Any:
        from tuneserve import api

        return getattr(api, self.__name__.rpartition(".")[2])
