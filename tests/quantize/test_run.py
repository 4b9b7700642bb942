"""The steps around the quantizing. `measure` starts a vLLM engine, so here its numbers are given; the real one runs in
test_end_to_end.py."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuneserve import card, checkpoint, tiers
from tuneserve.errors import StepFailed, UserError
from tuneserve.evaluate import held_out_rows
from tuneserve.latency import Latency
from tuneserve.measurement import Measurement
from tuneserve.quantize import quantize, run
from tuneserve.rows import Row

GOOD = Measurement({"accuracy": 0.9}, 6, 1.0, 100.0, "texts/s", ["positive"] * 6)
Measures = Callable[..., list[tuple[Path, Sequence[Row]]]]


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> Measures:
    """Makes `measure` answer with the given measurements in turn, then the last again; returns what it was asked."""

    def answer_with(*measurements: Measurement) -> list[tuple[Path, Sequence[Row]]]:
        calls: list[tuple[Path, Sequence[Row]]] = []
        answers = iter(measurements)

        def measure(directory: Path, rows: Sequence[Row]) -> Measurement:
            checkpoint.load(directory)
            calls.append((directory, rows))
            return next(answers, measurements[-1])

        monkeypatch.setattr(run, "measure", measure)
        return calls

    return answer_with


def test_a_checkpoint_with_its_past_and_what_it_cost(bert: Path, tmp_path: Path, measures: Measures) -> None:
    calls = measures(GOOD, replace(GOOD, metrics={"accuracy": 0.895}, throughput=150.0))
    report = quantize(bert, tmp_path / "out", "w8a8")

    rows = held_out_rows(bert, checkpoint.load(bert))
    assert [measured for _, measured in calls] == [rows, rows]
    assert report.drop == pytest.approx(0.005)
    manifest = checkpoint.load(tmp_path / "out")
    assert manifest.quantization == "w8a8"
    assert [step.name for step in manifest.lineage] == ["merge", "quantize"]
    step = manifest.lineage[-1]
    assert step.source == "sentiment"
    assert dict(step.config)["scheme"] == "w8a8"
    assert step.packages["llmcompressor"]
    assert step.measured_on == tiers.measured_on()
    assert step.metrics["accuracy"] == 0.895
    assert step.metrics["accuracy_before"] == 0.9
    assert step.metrics["texts_per_second"] == 150.0
    assert step.metrics["size_bytes"] < step.metrics["size_bytes_before"]
    assert step.metrics["size_bytes"] == (tmp_path / "out/model.safetensors").stat().st_size
    assert held_out_rows(tmp_path / "out", manifest) == rows
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (bert / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_card_says_that_it_is_quantized(bert: Path, tmp_path: Path, measures: Measures) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "source"))
    manifest = checkpoint.load(source)
    manifest.lineage.append(checkpoint.step("finetune", "tiny", {"output": "mine", "method": "full"}, ()))
    card.write(source, manifest)
    checkpoint.seal(source, manifest)
    measures(GOOD, replace(GOOD, metrics={"accuracy": 0.895}))
    quantize(source, tmp_path / "out", "w8a8")
    text = (tmp_path / "out" / checkpoint.CARD).read_text()
    assert "quantized: `w8a8`" in text
    assert "| accuracy | 0.8950 |" in text
    assert "quantized" not in (source / checkpoint.CARD).read_text()
    checkpoint.load(tmp_path / "out")


def test_the_report_says_how_sure_it_is(bert: Path, tmp_path: Path, measures: Measures) -> None:
    sums = [[1.0, 1.0]] * 90 + [[0.0, 1.0]] * 10
    costs: dict[str, Any] = {"latency": Latency(2.0, 4.0), "memory_bytes": 2_000_000_000}
    worse = replace(GOOD, **costs, metrics={"accuracy": 0.83}, row_sums=[[1.0, 1.0]] * 83 + [[0.0, 1.0]] * 17)
    measures(replace(GOOD, **costs, row_sums=sums), worse)
    report = quantize(bert, tmp_path / "out", "w8a8", max_drop=None)
    metrics = checkpoint.load(tmp_path / "out").lineage[-1].metrics
    assert metrics["latency_p95_ms_before"] == 4.0
    assert metrics["memory_bytes"] == 2e9
    assert metrics["difference_low"] < -0.07 < metrics["difference_high"] < 0
    assert 0 < metrics["p_value"] < 0.05
    assert "95 % interval" in report.table()
    assert "p95 of one, ms" in report.table()
    assert "memory, MB" in report.table()


def test_too_much_loss_keeps_nothing(
    bert: Path, tmp_path: Path, measures: Measures, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = measures(GOOD, replace(GOOD, metrics={"accuracy": 0.8}))
    with pytest.raises(StepFailed, match=r"accuracy 0\.9000 before, 0\.8000 after") as caught:
        quantize(bert, tmp_path / "out", "w8a8", max_drop=0.01)
    assert "lose most in w8a8, and without them it is still too much" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    # Before, with both methods that fit, and with one of the two blocks left as it is.
    assert len(calls) == 4
    printed = capsys.readouterr().out
    assert "w8a8 gptq" in printed
    assert "w8a8 rtn without block " in printed
    assert printed.count("loses too much") == 3


def test_what_is_left_as_it_is_saves_the_rest(bert: Path, tmp_path: Path, measures: Measures) -> None:
    bad = replace(GOOD, metrics={"accuracy": 0.8})
    measures(GOOD, bad, GOOD)
    report = quantize(bert, tmp_path / "out", "w8a8", method="rtn")
    manifest = checkpoint.load(tmp_path / "out")
    step = manifest.lineage[-1]
    assert list(step.config["kept_blocks"]) == list(report.recipe.kept)
    assert len(report.recipe.kept) == 1
    assert step.data_sha256 == manifest.calibration_split.sha256
    config = json.loads((tmp_path / "out/config.json").read_text())
    ignored = [name for name in config["quantization_config"]["ignore"] if f".layer.{report.recipe.kept[0]}." in name]
    assert len(ignored) == 6


def test_auto_keeps_the_fastest(
    bert: Path, tmp_path: Path, measures: Measures, capsys: pytest.CaptureFixture[str]
) -> None:
    measures(GOOD, replace(GOOD, throughput=150.0), replace(GOOD, throughput=120.0))
    report = quantize(bert, tmp_path / "out", "auto")
    assert report.recipe.scheme.name == "w8a8"
    assert checkpoint.load(tmp_path / "out").quantization == "w8a8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not list((tmp_path / "out").glob(".*"))
    printed = capsys.readouterr().out
    # What needs no data comes first, also where another method is better.
    assert "w4a16 rtn" in printed
    assert "slower than the one kept" in printed
    assert "as it was" in printed


def test_auto_names_the_blocks_that_stop_it(bert: Path, tmp_path: Path, measures: Measures) -> None:
    measures(GOOD, replace(GOOD, metrics={"accuracy": 0.8}, throughput=150.0))
    with pytest.raises(StepFailed, match="nothing that can be served here is faster and holds") as caught:
        quantize(bert, tmp_path / "out", "auto")
    for scheme in ("w8a8", "w4a16"):
        assert re.search(rf"blocks? \d+ lose most in {scheme}, and without", caught.value.hint)


def test_auto_keeps_nothing_that_is_slower(bert: Path, tmp_path: Path, measures: Measures) -> None:
    measures(GOOD, replace(GOOD, throughput=90.0))
    with pytest.raises(StepFailed, match="nothing that can be served here is faster"):
        quantize(bert, tmp_path / "out", "auto")
    assert list(tmp_path.iterdir()) == []


def test_what_needs_rows_is_refused_without_them(bert: Path, llama: Path, tmp_path: Path, measures: Measures) -> None:
    calls = measures()
    for source in (bert, llama):
        copy = Path(shutil.copytree(source, tmp_path / source.name))
        manifest = checkpoint.read_manifest(copy)
        manifest.ClearField("calibration_split")
        checkpoint.seal(copy, manifest)
    with pytest.raises(UserError, match="--method gptq needs rows to calibrate with") as caught:
        quantize(tmp_path / "sentiment", tmp_path / "out", "w8a8", method="gptq")
    assert "--calibration FILE" in caught.value.hint
    with pytest.raises(UserError, match="--kv-cache fp8 needs rows"):
        quantize(tmp_path / "chat", tmp_path / "out", "w8a8", fp8_cache=True)
    with pytest.raises(UserError, match="--method with --scheme auto"):
        quantize(bert, tmp_path / "out", "auto", method="rtn")
    assert calls == []


def test_too_much_loss_leaves_the_earlier_output(bert: Path, tmp_path: Path, measures: Measures) -> None:
    measures(GOOD, GOOD)
    quantize(bert, tmp_path / "out", "w8a8")
    before = checkpoint.version_of(checkpoint.load(tmp_path / "out"))
    measures(GOOD, replace(GOOD, metrics={"accuracy": 0.1}))
    with pytest.raises(StepFailed):
        quantize(bert, tmp_path / "out", "w4a16", overwrite=True, method="rtn")
    assert checkpoint.version_of(checkpoint.load(tmp_path / "out")) == before


def test_a_broken_result_is_too_much_loss(bert: Path, tmp_path: Path, measures: Measures) -> None:
    measures(GOOD, replace(GOOD, metrics={"accuracy": float("nan")}))
    with pytest.raises(StepFailed):
        quantize(bert, tmp_path / "out", "w8a8", method="rtn")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_drop", [-0.1, float("nan")])
def test_a_gate_that_makes_no_sense_is_refused(bert: Path, tmp_path: Path, max_drop: float) -> None:
    with pytest.raises(UserError, match="max_drop"):
        quantize(bert, tmp_path / "out", "w8a8", max_drop=max_drop)


@pytest.mark.parametrize("output", [".", "smaller"])
def test_an_output_inside_the_source_is_refused(bert: Path, output: str) -> None:
    with pytest.raises(UserError, match="inside the checkpoint that is read"):
        quantize(bert, bert / output, "w8a8", overwrite=True)


def test_any_loss_is_kept_without_a_gate(bert: Path, tmp_path: Path, measures: Measures) -> None:
    measures(GOOD, replace(GOOD, metrics={"accuracy": 0.1}))
    assert quantize(bert, tmp_path / "out", "w8a8", max_drop=None).drop == pytest.approx(0.8)
    assert (tmp_path / "out" / checkpoint.MANIFEST).exists()


def test_a_gate_in_percent_is_wondered_at(
    bert: Path, tmp_path: Path, measures: Measures, caplog: pytest.LogCaptureFixture
) -> None:
    measures(GOOD)
    quantize(bert, tmp_path / "out", "w8a8", max_drop=0.5)
    assert "max_drop 0.5 lets 50 points go: half a point is 0.005" in caplog.text


@pytest.mark.parametrize("rows", [20, 2000])
def test_rows_too_few_for_the_gate(
    rows: int, bert: Path, tmp_path: Path, measures: Measures, caplog: pytest.LogCaptureFixture
) -> None:
    # One in ten is wrong before, another one in ten after: no worse, and of 20 rows nobody knows.
    first, second = ([[float(row % 10 != wrong), 1.0] for row in range(rows)] for wrong in (0, 1))
    measures(replace(GOOD, row_sums=first), replace(GOOD, row_sums=second))
    report = quantize(bert, tmp_path / "out", "w8a8", max_drop=0.03)
    assert (report.spread > 0.03) == (rows == 20)
    assert ("more of them with --data" in caplog.text) == (rows == 20)


def test_an_earlier_measurement_is_not_repeated(bert: Path, tmp_path: Path, measures: Measures) -> None:
    calls = measures(GOOD)
    quantize(bert, tmp_path / "out", "w8a8", before=GOOD)
    assert len(calls) == 1


def test_an_existing_output_is_refused_before_any_work(bert: Path, tmp_path: Path, measures: Measures) -> None:
    calls = measures()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="already exists"):
        quantize(bert, tmp_path / "out", "w8a8")
    assert calls == []


def test_a_disk_that_is_too_small_is_refused_before_any_work(bert: Path, measures: Measures) -> None:
    calls = measures(GOOD)
    # A file system without any space.
    with pytest.raises(UserError, match=r"/proc/new/out: about .* are needed and 0\.0 MB are free"):
        quantize(bert, Path("/proc/new/out"), "w8a8")
    assert not calls


def test_a_refused_scheme_does_no_work(bert: Path, tmp_path: Path, measures: Measures) -> None:
    calls = measures()
    with pytest.raises(UserError, match="bitsandbytes loader"):
        quantize(bert, tmp_path / "out", "nf4")
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_changed_checkpoint_is_refused(bert: Path, tmp_path: Path, measures: Measures) -> None:
    copy = shutil.copytree(bert, tmp_path / "copy")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    calls = measures()
    with pytest.raises(UserError, match="content differs"):
        quantize(copy, tmp_path / "out", "w8a8")
    assert calls == []


def test_the_table_tells_what_changed(bert: Path, tmp_path: Path, measures: Measures) -> None:
    flipped = ["negative", *GOOD.predictions[1:]]
    measures(GOOD, replace(GOOD, metrics={"accuracy": 0.895}, throughput=150.0, predictions=flipped))
    table = quantize(bert, tmp_path / "out", "w8a8").table()
    assert "0.9000" in table
    assert "0.50 points worse" in table
    assert "x 1.50" in table
    assert "16.67%" in table


def test_the_manifest_is_the_only_place_that_knows_the_scheme(bert: Path, tmp_path: Path, measures: Measures) -> None:
    measures(GOOD, GOOD)
    quantize(bert, tmp_path / "out", "w4a16")
    step = json.loads((tmp_path / "out" / checkpoint.MANIFEST).read_text())["lineage"][-1]
    assert step["config"]["group_size"] == 64


def test_a_reduced_range_is_in_the_lineage(bert: Path, tmp_path: Path, measures: Measures) -> None:
    measures(GOOD, GOOD)
    with pytest.raises(UserError, match="--reduce-range with --scheme nf4"):
        quantize(bert, tmp_path / "out", "nf4", reduce_range=True)
    report = quantize(bert, tmp_path / "out", "w8a8", reduce_range=True)
    manifest = checkpoint.load(tmp_path / "out")
    assert dict(manifest.lineage[-1].config)["reduce_range"] is True
    assert report.recipe.label == "w8a8 rtn of reduced range"
    assert not tiers.saturation(manifest, tmp_path / "out", tiers.AVX2)
