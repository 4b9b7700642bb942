"""What every program raises when the caller, not the program, has to change something.

    UserError            bad input: one line, a hint, exit status 2
    ├── CheckpointError  a directory that is not a checkpoint we may load
    └── (each program adds its own beside its code)
    StepFailed           a check on the result failed (merge, quality gate): exit status 1, nothing kept

The command line prints both without a traceback; anything else is a bug and keeps its traceback.
"""


class UserError(Exception):
    """Bad input. The message names the field or file and what is allowed; `hint` says what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CheckpointError(UserError):
    """A checkpoint directory that is missing, incomplete, changed after it was made, or unsafe to load."""


class StepFailed(Exception):
    """The work was done but its result did not pass a check, so nothing was kept."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
