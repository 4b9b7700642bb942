"""What was tried, in the policy's output:

    0001.jsonl    the feedback that the first attempt was trained on
    0001          its checkpoint, whole or not there; 0001-report and 0001-adapter beside it
    0001.json     how far it came
    current       a link to the checkpoint that was promoted last

Each file is written whole or not at all, so a run that is killed anywhere is continued by the next one.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import rows
from tuneserve.checkpoint.rows import Row
from tuneserve.errors import StepFailed, UserError
from tuneserve.machine import disk

PROMOTED, REFUSED, ROLLED_BACK = "promoted", "not better", "rolled back"


@dataclass
class Attempt:
    """One new checkpoint, finished or not."""

    output: Path
    number: int
    known: Mapping[str, Any]  # `source` and `settings` it began with; later `compared` and `outcome`

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.number:04d}"

    @property
    def checkpoint(self) -> Path:
        """Where its checkpoint is, once it was trained."""
        return self.output / self.name

    @property
    def rows_file(self) -> Path:
        """The feedback that it trains on."""
        return self.output / f"{self.name}.jsonl"

    @property
    def outcome(self) -> str:
        """How it ended; empty until then."""
        return str(self.known.get("outcome", ""))

    def rows(self) -> list[Row]:
        """The feedback that it trains on."""
        return rows.read(self.rows_file)

    def note(self, **more: Any) -> None:
        """Notes how far it came."""
        self.known = {**self.known, **more}
        disk.write(self.output / f"{self.name}.json", [json.dumps(self.known, indent=2), "\n"])

    def forget(self) -> None:
        """Removes its files."""
        for path in (*self.output.glob(f"{self.name}*"), *self.output.glob(f".{self.name}*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class Attempts:
    """The attempts of one output."""

    def __init__(self, output: Path) -> None:
        self._output = output
        found = sorted(path for path in output.glob("*.json") if path.stem.isdecimal())
        self.all = [Attempt(output, int(path.stem), json.loads(path.read_text(encoding="utf-8"))) for path in found]

    @property
    def unfinished(self) -> Attempt | None:
        """The one that was interrupted."""
        return next((one for one in self.all if not one.outcome), None)

    @property
    def current(self) -> Path | None:
        """The checkpoint that was promoted last."""
        return next((one.checkpoint for one in reversed(self.all) if one.outcome == PROMOTED), None)

    def learned(self) -> list[Row]:
        """The rows of the attempts that were promoted."""
        return [row for one in self.all if one.outcome == PROMOTED for row in one.rows()]

    def tried(self) -> list[Row]:
        """The rows of all attempts."""
        return [row for one in self.all for row in one.rows()]

    def begin(self, new: Sequence[Row], **known: Any) -> Attempt:
        """Begins an attempt on these rows."""
        attempt = Attempt(self._output, max((one.number for one in self.all), default=0) + 1, {})
        # What an attempt left that was killed before it began.
        attempt.forget()
        disk.write(attempt.rows_file, (f"{rows.dumps(row)}\n" for row in new))
        attempt.note(**known)
        return attempt

    def promote(self, attempt: Attempt) -> None:
        """Ends an attempt: its checkpoint is the current one now."""
        attempt.note(outcome=PROMOTED)
        self.link(attempt.checkpoint)

    def link(self, checkpoint: Path) -> None:
        """Makes OUTPUT/current lead to a checkpoint."""
        link = self._output / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(checkpoint.name)
        link.replace(self._output / "current")


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """No other run works on this output during the block. Raises StepFailed if one does."""
    with ExitStack() as held:
        try:
            output.mkdir(parents=True, exist_ok=True)
            held.enter_context(disk.locked(output / ".lock", wait=False))
        except BlockingIOError:
            raise StepFailed(f"{output}: another run works here", "wait until it has ended") from None
        except OSError as error:
            raise UserError(f"output: {output}: {error.strerror}") from None
        yield
