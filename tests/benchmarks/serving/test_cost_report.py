"""The results as tables and files."""

from tuneserve.benchmarks.serving import cost_report
from tuneserve.benchmarks.serving.interleave import Sample


def test_a_disturbed_run_says_so() -> None:
    report = cost_report.Report(1)
    assert cost_report._notes(report) == []
    report.add("x", {"a": [Sample(1, 1, 1, 1, None, others) for others in (0.0, 0.5, 0.6)]}, [])
    assert "0.50 cores" in cost_report._notes(report)[0]
    assert "not valid" in cost_report._notes(report)[1]


def test_a_second_report_of_a_day_does_not_replace_the_first(monkeypatch, tmp_path):
    monkeypatch.setattr(cost_report, "RESULTS", tmp_path / "results")
    first, second = (cost_report.write(cost_report.Report(1)) for _ in range(2))
    assert first != second
    assert second.name == f"{first.stem}-2.md"
    assert set((tmp_path / "results").iterdir()) == {first, second}


def test_a_report_is_written_where_it_is_wanted(tmp_path):
    assert cost_report.write(cost_report.Report(1), tmp_path / "new" / "peers.md") == tmp_path / "new" / "peers.md"
    assert "1 rounds" in (tmp_path / "new" / "peers.md").read_text()


def test_a_peer_that_labels_many_texts_otherwise_is_marked():
    assert cost_report.Answers(95, 100).mark == ""
    assert cost_report.Answers(94, 100).mark == "answers otherwise"
