import json
from pathlib import Path

import pytest
from rich.table import Table

from tuneserve.benchmarks.answers import served


def test_a_result_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("measure", "found", title="An index")
    table.add_row("recall", "0.93")
    served.conclude(table, {"recall": 0.93}, tmp_path / "report.md")
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["recall"] == 0.93
    assert "tier" in said["machine"]
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# An index\n")
    assert "recall" in text
    assert json.loads(text.split("```json\n")[1].split("\n")[0]) == said
