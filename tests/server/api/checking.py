"""What a check of a request says, for tests of checks."""

from typing import Any

import pytest

from tuneserve.server.call.errors import InvalidInput, Violations


def refusal(check, *arguments, **more) -> InvalidInput:
    """The error of fields that are wrong."""
    with pytest.raises(InvalidInput) as caught, Violations() as wrong:
        check(wrong, *arguments, **more)
    return caught.value


def raised(check, *arguments, **more) -> InvalidInput:
    """The error of what raises it itself."""
    with pytest.raises(InvalidInput) as caught:
        check(*arguments, **more)
    return caught.value


def good(check, *arguments, **more) -> Any:
    """What a check returns of fields that are right."""
    with Violations() as wrong:
        return check(wrong, *arguments, **more)
