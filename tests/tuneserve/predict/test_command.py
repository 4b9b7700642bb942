"""tuneserve predict: what is refused before any work."""

from ..conftest import refused


def test_predict_refuses_before_it_works(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"review": "a"}\n')
    assert "--shard 2/2: give I/N" in refused("predict", tmp_path, rows, "-", "--shard", "2/2")
    assert "--column text: give NAME=COLUMN" in refused("predict", tmp_path, rows, "-", "--column", "text")
    assert "standard output can't be resumed" in refused("predict", tmp_path, rows, "-", "--resume")
    assert "no such file or folder" in refused("predict", tmp_path, tmp_path / "no.csv", "-")
    assert "config.json: missing" in refused("predict", tmp_path, rows, tmp_path / "out.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
