"""tuneserve quantize and evaluate: what is refused before any work."""

from ..conftest import refused


def test_quantize_refuses_before_it_works(tmp_path, make_bert):
    directory = make_bert(labels=["a", "b"])
    assert "int3" in refused("quantize", directory, tmp_path / "out", "--scheme", "int3")
    assert "nf4" in refused("quantize", directory, tmp_path / "out", "--scheme", "nf4").lower()
    assert list(tmp_path.iterdir()) == []


def test_evaluate_needs_rows(make_bert):
    assert "--data" in refused("evaluate", make_bert(labels=["a", "b"]))
