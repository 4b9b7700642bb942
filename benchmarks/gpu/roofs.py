"""What the device reaches at best: bytes a second, and operations a second of large matrix products by type.

Of several repetitions the fastest one counts: a roof is what was possible, not what is usual. It needs torch alone, and
also runs on a CPU.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

# Buffers that no cache holds, and products that occupy the whole device.
_COPIED_BYTES, _SIDE = {True: 2 << 30, False: 64 << 20}, {True: 8192, False: 256}
_SECONDS = {True: 0.5, False: 0.02}
# Its fields, as far as a version of torch has them.
_PROPERTIES = (
    *("name", "major", "minor", "total_memory", "multi_processor_count", "L2_cache_size"),
    *("clock_rate", "memory_clock_rate", "memory_bus_width"),
)


def measure() -> dict[str, Any]:
    """Returns bandwidth and operations a second, and what the driver says of the device."""
    on_gpu = torch.cuda.is_available()
    device, seconds = "cuda" if on_gpu else "cpu", _SECONDS[on_gpu]
    copied, read = _bandwidth(_COPIED_BYTES[on_gpu], device, seconds)
    operations: dict[str, float] = {}
    missing: dict[str, str] = {}
    side = _SIDE[on_gpu]
    for name, product in _products(side, device).items():
        try:
            operations[name] = 2 * side**3 / _fastest(product, seconds)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            missing[name] = str(error).splitlines()[0]
    properties = torch.cuda.get_device_properties(0) if on_gpu else None
    return {
        "bandwidth": max(copied, read),
        "copied": copied,
        "read": read,
        "operations": operations,
        "missing": missing,
        "properties": {key: getattr(properties, key) for key in _PROPERTIES if hasattr(properties, key)},
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def _bandwidth(size: int, device: str, seconds: float) -> tuple[float, float]:
    """Bytes a second that are copied, read and write counted, and that are read alone, as a decode step does."""
    given = torch.randn(size // 2, dtype=torch.bfloat16, device=device)
    taken, rows = torch.empty_like(given), given.view(-1, 8192)
    copied = 2 * size / _fastest(lambda: taken.copy_(given), seconds)
    return copied, size / _fastest(lambda: torch.mv(rows, rows[0]), seconds)


def _products(side: int, device: str) -> dict[str, Callable[[], Any]]:
    """Square products, by the type of their operands."""
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    int_a, int_b = (torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device) for _ in range(2))
    one = torch.ones((), device=device)

    def fp8() -> Any:
        # The second operand's columns are contiguous: the only layout that there is a kernel for.
        return torch._scaled_mm(fp8_a, fp8_b.t(), one, one, out_dtype=torch.bfloat16)

    fp8_a, fp8_b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    return {"bf16": lambda: a @ b, "fp8": fp8, "int8": lambda: torch._int_mm(int_a, int_b.t())}


def _fastest(work: Callable[[], Any], seconds: float, repetitions: int = 8) -> float:
    """The seconds of one call, in the fastest of some repetitions, after one that warms up."""
    best, calls = float("inf"), 1
    for number in range(repetitions + 1):
        _wait()
        started = time.perf_counter()
        for _ in range(calls):
            work()
        _wait()
        taken = (time.perf_counter() - started) / calls
        calls = max(1, int(seconds / repetitions / taken))
        best = min(best, taken) if number else best
    return best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
