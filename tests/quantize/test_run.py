"""The steps around the quantizing. `measure` starts a vLLM engine, so here its numbers are given; the real one runs in
test_end_to_end.py."""

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuneserve import card, checkpoint
from tuneserve.checkpoint import encoders, rows, seen
from tuneserve.checkpoint.rows import Row, input_key, read, sha256
from tuneserve.errors import StepFailed, UserError
from tuneserve.evaluation.evaluate import held_out_rows
from tuneserve.evaluation.latency import Latency
from tuneserve.evaluation.measurement import Measurement
from tuneserve.machine import tiers
from tuneserve.quantize import calibration, preflight, quantize, race, run
from tuneserve.quantize.race import Ratio

ROWS = 1000


def measured(right: int, **changes: Any) -> Measurement:
    """What `measure` answers when so many of the rows are right, the first ones."""
    sums = [[float(number < right), 1.0] for number in range(ROWS)]
    predictions = ["positive"] * right + ["negative"] * (ROWS - right)
    made = Measurement({"accuracy": right / ROWS}, ROWS, 1.0, 100.0, "texts/s", predictions, sums)
    return replace(made, **changes)


GOOD = measured(900)
Measures = Callable[..., list[tuple[Path, Sequence[Row]]]]


@pytest.fixture(autouse=True)
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[tiers.Tier], None]:
    """on(tier) quantizes for a machine of that tier; by default one that serves every scheme of CPUs."""

    def platform(tier: tiers.Tier) -> None:
        monkeypatch.setattr(preflight, "this_platform", lambda: preflight.Platform(tier))

    platform(tiers.AVX512_BF16)
    return platform


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> Measures:
    """Makes `measure` answer for each new checkpoint with the next of the given measurements, in the end with the last;
    returns what it was asked."""

    def answer_with(*measurements: Measurement) -> list[tuple[Path, Sequence[Row]]]:
        calls: list[tuple[Path, Sequence[Row]]] = []
        answers = iter(measurements)
        known: dict[Path, Measurement] = {}

        def measure(directory: Path, rows: Sequence[Row]) -> Measurement:
            checkpoint.load(directory)
            calls.append((directory, rows))
            if directory not in known:
                known[directory] = next(answers, measurements[-1])
            return known[directory]

        monkeypatch.setattr(run, "measure", measure)
        monkeypatch.setattr(
            race, "in_turns", lambda first, second, _: Ratio(known[second].throughput / known[first].throughput)
        )
        monkeypatch.setattr(race, "fits", lambda _: True)
        return calls

    return answer_with


def test_a_checkpoint_with_its_past_and_what_it_cost(bert: Path, tmp_path: Path, measures: Measures) -> None:
    calls = measures(GOOD, measured(895, throughput=150.0))
    report = quantize(bert, tmp_path / "out", "w8a8", max_drop=0.02)

    held_out = held_out_rows(bert, checkpoint.load(bert))
    assert [measured for _, measured in calls] == [held_out, held_out]
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
    assert held_out_rows(tmp_path / "out", manifest) == held_out
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (bert / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_files_in_folders_are_copied(bert: Path, tmp_path: Path, measures: Measures) -> None:
    """The pooling of an encoder is in a config.json of its own: without it, vLLM would take another."""
    source = Path(shutil.copytree(bert, tmp_path / "source"))
    encoders.write(source, "mean", {"query": "query: "}, size=64, max_length=64)
    checkpoint.seal(source, checkpoint.read_manifest(source))
    measures(GOOD)
    quantize(source, tmp_path / "out", "w8a8", max_drop=None)
    assert encoders.pooling(tmp_path / "out") == "mean"
    assert encoders.prompts(tmp_path / "out") == {"query": "query: "}


def test_the_card_says_that_it_is_quantized(bert: Path, tmp_path: Path, measures: Measures) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "source"))
    manifest = checkpoint.load(source)
    manifest.lineage.append(checkpoint.step("finetune", "tiny", {"output": "mine", "method": "full"}, ()))
    card.write(source, manifest)
    checkpoint.seal(source, manifest)
    measures(GOOD, measured(895))
    quantize(source, tmp_path / "out", "w8a8", max_drop=0.02)
    text = (tmp_path / "out" / checkpoint.CARD).read_text()
    assert "quantized: `w8a8`" in text
    assert "| accuracy | 0.8950 |" in text
    assert "quantized" not in (source / checkpoint.CARD).read_text()
    checkpoint.load(tmp_path / "out")


def test_the_report_says_how_sure_it_is(bert: Path, tmp_path: Path, measures: Measures) -> None:
    costs: dict[str, Any] = {"latency": Latency(2.0, 4.0), "memory_bytes": 2_000_000_000}
    measures(measured(900, **costs), measured(890, **costs))
    report = quantize(bert, tmp_path / "out", "w8a8", max_drop=None)
    metrics = checkpoint.load(tmp_path / "out").lineage[-1].metrics
    assert metrics["latency_p95_ms_before"] == 4.0
    assert metrics["memory_bytes"] == 2e9
    assert metrics["difference_low"] < -0.01 < metrics["difference_high"] < 0
    assert 0 < metrics["p_value"] < 0.05
    assert metrics["drop_at_most"] == -metrics["difference_low"]
    assert "95 % interval" in report.table()
    assert "on 1,000 rows; exact McNemar test" in report.table()
    assert "p95 of one, ms" in report.table()
    assert "memory, MB" in report.table()


def test_too_much_loss_keeps_nothing(
    bert: Path, tmp_path: Path, measures: Measures, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = measures(GOOD, measured(800))
    with pytest.raises(StepFailed, match=r"accuracy 0\.9000 before, 0\.8000 after") as caught:
        quantize(bert, tmp_path / "out", "w8a8", max_drop=0.01)
    assert "lose most in w8a8, and without them it is still too much" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    # The held-out rows: before, and with the first method, which is the best one, too.
    held_out, choosing = (sum(len(rows) == count for _, rows in calls) for count in (1000, 16))
    assert held_out == 2
    # Those to choose on: before, with both methods that fit, and with one of the two blocks left as it is.
    assert choosing == 4
    assert not set(map(input_key, calls[0][1])) & set(map(input_key, calls[2][1]))
    printed = capsys.readouterr().out
    assert "w8a8 gptq" in printed
    assert "w8a8 rtn without block " in printed
    assert printed.count("may lose too much") == 2


def test_what_is_left_as_it_is_saves_the_rest(bert: Path, tmp_path: Path, measures: Measures) -> None:
    bad = measured(800)
    measures(GOOD, bad, GOOD)
    report = quantize(bert, tmp_path / "out", "w8a8", method="rtn")
    manifest = checkpoint.load(tmp_path / "out")
    step = manifest.lineage[-1]
    assert list(step.config["kept_blocks"]) == list(report.recipe.kept)
    assert len(report.recipe.kept) == 1
    seen = read(bert / manifest.calibration_split.path)
    assert step.data_sha256 == sha256(calibration.split(seen)[0])
    config = json.loads((tmp_path / "out/config.json").read_text())
    ignored = [name for name in config["quantization_config"]["ignore"] if f".layer.{report.recipe.kept[0]}." in name]
    assert len(ignored) == 6


def test_auto_keeps_the_fastest(
    bert: Path, tmp_path: Path, measures: Measures, capsys: pytest.CaptureFixture[str]
) -> None:
    measures(GOOD, replace(GOOD, throughput=150.0), replace(GOOD, throughput=120.0))
    report = quantize(bert, tmp_path / "out", "auto")
    assert report.recipe.scheme.name == "w8a8"
    assert "x 1.50, in turns" in report.table()
    assert checkpoint.load(tmp_path / "out").quantization == "w8a8"
    assert checkpoint.load(tmp_path / "out").lineage[-1].metrics["speed_ratio"] == 1.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not list((tmp_path / "out").glob(".*"))
    printed = capsys.readouterr().out
    # What needs no data comes first, also where another method is better.
    assert "w4a16 rtn" in printed
    assert "slower than the one chosen" in printed
    assert "as it was" in printed


def test_auto_tries_what_the_machine_serves(
    bert: Path, tmp_path: Path, measures: Measures, on: Callable[[tiers.Tier], None], caplog: pytest.LogCaptureFixture
) -> None:
    on(tiers.AVX2)
    caplog.set_level("INFO")
    measures(GOOD, replace(GOOD, throughput=110.0))
    report = quantize(bert, tmp_path / "out", "auto")
    assert report.recipe.label == "w8a8 rtn of reduced range"
    assert "their products would saturate on AVX2" in caplog.text
    with pytest.raises(UserError, match=r"w4a16 can't be served: .*AVX-512"):
        quantize(bert, tmp_path / "other", "w4a16")


def test_auto_names_the_blocks_that_stop_it(bert: Path, tmp_path: Path, measures: Measures) -> None:
    measures(GOOD, measured(800, throughput=150.0))
    with pytest.raises(StepFailed, match="no scheme that can be served here is faster and keeps") as caught:
        quantize(bert, tmp_path / "out", "auto")
    for scheme in ("w8a8", "w4a16"):
        assert re.search(rf"blocks? \d+ lose most in {scheme}, and without", caught.value.hint)


def test_auto_keeps_nothing_that_is_slower(bert: Path, tmp_path: Path, measures: Measures) -> None:
    measures(GOOD, replace(GOOD, throughput=90.0))
    with pytest.raises(StepFailed, match="no scheme that can be served here is faster"):
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
    measures(GOOD, measured(100))
    with pytest.raises(StepFailed):
        quantize(bert, tmp_path / "out", "w4a16", overwrite=True, method="rtn")
    assert checkpoint.version_of(checkpoint.load(tmp_path / "out")) == before


def test_a_broken_result_is_too_much_loss(bert: Path, tmp_path: Path, measures: Measures) -> None:
    measures(GOOD, measured(900, metrics={"accuracy": math.nan}, row_sums=[[math.nan, 1.0]] * ROWS))
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
    measures(GOOD, measured(100))
    assert quantize(bert, tmp_path / "out", "w8a8", max_drop=None).drop == pytest.approx(0.8)
    assert (tmp_path / "out" / checkpoint.MANIFEST).exists()


def test_a_gate_in_percent_is_wondered_at(
    bert: Path, tmp_path: Path, measures: Measures, caplog: pytest.LogCaptureFixture
) -> None:
    measures(GOOD)
    quantize(bert, tmp_path / "out", "w8a8", max_drop=0.5)
    assert "max_drop 0.5 allows a drop of 50 points: half a point is 0.005" in caplog.text


def noisy(*changed: int) -> tuple[Measurement, Measurement]:
    """One in ten is wrong before; after, some other rows are, and as many that were wrong are right."""
    before, after = measured(900), measured(900)
    for number in range(*changed):
        after.row_sums[number][0], after.row_sums[999 - number][0] = 0.0, 1.0
    return before, after


def test_rows_too_few_to_tell(bert: Path, tmp_path: Path, measures: Measures) -> None:
    """No worse on these rows; of all others nobody knows."""
    calls = measures(*noisy(60))
    with pytest.raises(
        StepFailed, match=r"may lose too much: .* a drop of 0\.0000, and with 95 % confidence"
    ) as caught:
        quantize(bert, tmp_path / "out", "w8a8", max_drop=0.01, method="rtn")
    assert re.search(
        r"1,000 rows are too few to tell: measure on about 5,000 with --data FILE\.jsonl, allow 0\.023 with "
        "--max-drop, or decide by the drop itself with --point-estimate",
        caught.value.hint,
    )
    # Another way to round would tell no more.
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_drop_itself_may_decide(bert: Path, tmp_path: Path, measures: Measures) -> None:
    calls = measures(*noisy(60))
    quantize(bert, tmp_path / "out", "w8a8", max_drop=0.01, point_estimate=True)
    assert len(calls) == 2
    assert checkpoint.load(tmp_path / "out").lineage[-1].config["point_estimate"] is True


def test_rows_that_can_show_nothing_are_refused_before_any_work(bert: Path, tmp_path: Path, measures: Measures) -> None:
    calls = measures(GOOD)
    rows = held_out_rows(bert, checkpoint.load(bert))[:200]
    with pytest.raises(
        UserError, match=r"200 held-out rows can't show that at most 0\.01 is lost: it takes 381"
    ) as caught:
        quantize(bert, tmp_path / "out", "w8a8", data=rows)
    assert "allow 0.019 or more with --max-drop" in caught.value.hint
    assert "--point-estimate" in caught.value.hint
    assert calls == []
    quantize(bert, tmp_path / "out", "w8a8", data=rows, point_estimate=True)


def test_what_is_chosen_on_other_rows_is_measured_on_the_held_out_ones(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt is the best where it is chosen, and is not where it counts."""
    made: list[Path] = []

    def measure(directory: Path, rows: Sequence[Row]) -> Measurement:
        if directory != bert and directory not in made:
            made.append(directory)
        if directory == bert:
            return GOOD
        return measured(850) if directory == made[0] or len(rows) == ROWS else GOOD

    monkeypatch.setattr(run, "measure", measure)
    with pytest.raises(StepFailed, match=r"w8a8 gptq loses too much: accuracy 0\.9000 before, 0\.8500 after"):
        quantize(bert, tmp_path / "out", "w8a8")
    assert len(made) == 2


def test_auto_halves_the_rows_where_none_are_kept_to_choose_on(bert: Path, tmp_path: Path, measures: Measures) -> None:
    calls = measures(GOOD, measured(900, throughput=150.0), measured(900, throughput=120.0))
    copy = Path(shutil.copytree(bert, tmp_path / bert.name))
    manifest = checkpoint.read_manifest(copy)
    manifest.ClearField("calibration_split")
    checkpoint.seal(copy, manifest)
    quantize(copy, tmp_path / "out", "auto")
    parts = {tuple(map(input_key, rows)) for _, rows in calls}
    assert sorted(len(part) for part in parts) == [500, 500]
    assert len(set().union(*parts)) == 1000


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
    measures(GOOD, measured(895, throughput=150.0))
    table = quantize(bert, tmp_path / "out", "w8a8", max_drop=0.02).table()
    assert "0.9000" in table
    assert "0.50 points worse" in table
    assert "x 1.50, one after the other" in table
    assert "0.50%" in table


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


def test_what_was_trained_on_is_not_measured_and_what_calibrated_is_told(
    bert: Path, tmp_path: Path, measures: Measures
) -> None:
    source = Path(shutil.copytree(bert, tmp_path / "source"))
    manifest = checkpoint.load(source)
    trained: list[Row] = rows.read(source / checkpoint.CALIBRATION_SPLIT)
    seen.keep(source, manifest, seen.learned(trained))
    checkpoint.seal(source, manifest)
    new = [{"text": f"question {n}", "label": "positive"} for n in range(3)]
    more = [{"text": f"answer {n}", "label": "negative"} for n in range(5)]
    rows.write(tmp_path / "more.jsonl", more)
    with pytest.raises(UserError, match=r"all 32 rows are among those that .*source was trained on"):
        quantize(source, tmp_path / "out", "w8a8", data=trained)
    calls = measures(GOOD)
    given = {"method": "gptq", "calibration_file": tmp_path / "more.jsonl"}
    quantize(source, tmp_path / "out", "w8a8", max_drop=None, data=[*trained, *new], **given)
    assert [measured for _, measured in calls] == [new, new]
    assert checkpoint.load(tmp_path / "out").trained_rows.rows == 32 + 5
    assert seen.unseen([*trained, *new, *more], [tmp_path / "out"]) == new
