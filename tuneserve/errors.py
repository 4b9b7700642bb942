"""The errors that every command raises for causes outside of its own code.

    UserError            bad input: one line, a hint, exit status 2
    ├── CheckpointError  a directory that is not a checkpoint, or not safe to load
    └── (each package adds its own beside its code)
    StepFailed           a check on the result failed (merge, quality gate): exit status 1, nothing written

The command line prints both without a traceback; any other exception is a bug and is shown with its traceback.
"""


class UserError(Exception):
    """Bad input. The message names the field or file and the problem; `hint` says what is allowed or what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CheckpointError(UserError):
    """A checkpoint directory that is missing, incomplete, changed after it was made, or unsafe to load."""


class StepFailed(Exception):
    """The work was done, but its result did not pass a check, so nothing was written."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
