"""The page of a run."""

from pathlib import Path

from tuneserve.benchmarks.gpu import report, results
from tuneserve.benchmarks.gpu.phases import ROOFS, Phase, Variant

from .conftest import BERT, LLAMA

PHASES = [Phase(ROOFS, 1), Phase(LLAMA.name, 1, LLAMA, (Variant("ours", "bf16"),)), Phase(BERT.name, 1, BERT)]


def test_the_page_has_every_figure_and_says_what_is_missing(out: Path) -> None:
    assert results.roofs(out) is None
    found = {"bandwidth": 4e12, "copied": 4e12, "read": 3e12, "operations": {"bf16": 7e14}, "missing": {"fp8": "why"}}
    results.write(out / "roofs.json", found)
    roofs = results.roofs(out)
    assert roofs is not None
    assert (roofs.bandwidth, roofs.operations) == (4e12, {"bf16": 7e14})
    page = report.write(PHASES, out).read_text()
    assert page.startswith("# A card\n")
    assert "4,000 GB/s (copy 4,000, read 3,000)" in page
    assert "bf16: 700.0 T operations a second" in page
    assert "fp8: not measured: why" in page
    [ours] = [line for line in page.splitlines() if line.startswith("| ours, bf16")]
    assert [cell.strip() for cell in ours.split("|")][2:-1] == [
        *("209.8 (114.5 to 384.3)", "420", "50%", "12.00", "6.50", "6.75", "0.50", "0.25", "0.12")
    ]
    assert "ours, to vllm serve: 2.00 (2.00 to 2.00)" in page
    assert "55 s, cut off. Seconds to start, all at the same time: ours, bf16 20." in page
    assert "- Not measured: vllm serve in Rust, bf16: it ended" in page
    assert "64 streams" not in page
    assert page.endswith(f"## {BERT.name}\n\nNot measured yet.\n")
