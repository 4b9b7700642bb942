"""What a run measured: its figures by name, from what its processes counted. bench.py says what each figure means."""

from collections.abc import Sequence
from dataclasses import dataclass

from tuneserve.benchmarks.serving.load.calls import Served
from tuneserve.benchmarks.serving.load.settings import Settings
from tuneserve.benchmarks.serving.load.tally import Tally, milliseconds
from tuneserve.errors import StepFailed
from tuneserve.machine.tiers import measured_on

# From here on, the client's own speed limits the load: a share of a core, and milliseconds.
BUSY, LATE = 0.8, 10.0


@dataclass(frozen=True)
class Part:
    """What one client process counted, and the share of a core that it used."""

    served: Served
    tally: Tally
    cpu: float


@dataclass(frozen=True)
class Result:
    """The results. `figures` are named with their units; a figure without any measurement is None."""

    settings: Settings
    served: Served
    calls: int
    errors: dict[str, int]
    error_texts: dict[str, str]
    figures: dict[str, float | None]

    @property
    def invalid(self) -> bool:
        """Whether the client's own speed limited the load, so that the figures are not the server's."""
        return (self.figures["client_cpu"] or 0) > BUSY or (self.figures.get("lag_ms_p99") or 0) > LATE

    @property
    def throughput(self) -> str:
        """The name of the figure that counts what the model did."""
        return "output_tokens_per_s" if self.served.generates else "texts_per_s"

    @property
    def offered(self) -> float:
        """Calls a second that were due, in an open loop; 0 in a closed one."""
        if self.settings.rate is None and self.settings.self_timed:
            return (self.calls + sum(self.errors.values())) / self.settings.seconds
        return self.settings.rate or 0.0

    @property
    def good_share(self) -> float:
        """The share of good calls among all, errors included."""
        return (self.figures["goodput_per_s"] or 0) * self.settings.seconds / (self.calls + sum(self.errors.values()))

    def to_json(self) -> dict[str, object]:
        """Returns one flat object: settings, what was served, figures."""
        # The caller's target and key are left out.
        settings = {key: value for key, value in vars(self.settings).items() if key != "server"}
        settings |= {"target": self.settings.server.target, "tls": self.settings.server.secure}
        settings |= {"texts": str(self.settings.texts or "built-in"), "client_tier": measured_on()}
        settings |= {"trace": str(self.settings.trace) if self.settings.trace else None}
        served = {name: getattr(self.served, name) for name in ("task", "call", "version", "quantization")}
        outcome = {"calls": self.calls, "errors": self.errors, "error_texts": self.error_texts}
        outcome["invalid"] = self.invalid
        return settings | served | outcome | self.figures


def joined(settings: Settings, parts: Sequence[Part]) -> Result:
    """Returns the result of a run from what each of its processes counted. Raises StepFailed if no call succeeded."""
    served, tally = parts[0].served, parts[0].tally
    for part in parts[1:]:
        tally.join(part.tally)
    if not tally.latencies:
        refusals = "".join(f"; {code}: {text}" for code, text in tally.error_texts.items())
        raise StepFailed(
            f"no call was answered in {settings.seconds:g} s{refusals}", "" if refusals else "measure longer"
        )
    return Result(
        settings=settings,
        served=served,
        calls=len(tally.latencies),
        errors=dict(tally.errors),
        error_texts={code: tally.error_texts[code] for code in tally.errors},
        figures=_figures(served, settings, tally) | {"client_cpu": round(max(part.cpu for part in parts), 3)},
    )


def _figures(served: Served, settings: Settings, tally: Tally) -> dict[str, float | None]:
    """Returns the figures of the call, by name with unit."""
    seconds = settings.seconds
    rates = {
        "calls_per_s": round(len(tally.latencies) / seconds, 3),
        "input_tokens_per_s": round(tally.prompt_tokens / seconds, 1),
    }
    if settings.goodput:
        rates["goodput_per_s"] = round(tally.good / seconds, 3)
    lags = milliseconds("lag", tally.lags, [50, 99])
    if not served.generates:
        return {"texts_per_s": round(tally.inputs / seconds, 2)} | rates | lags | milliseconds("e2el", tally.latencies)
    generated = {"output_tokens_per_s": round(tally.output_tokens / seconds, 2)} | rates | lags
    if not settings.stream:
        return generated | milliseconds("e2el", tally.latencies)
    return (
        generated
        | milliseconds("ttft", tally.first_tokens)
        | milliseconds("itl", tally.gaps)
        | milliseconds("tpot", tally.per_token)
        | milliseconds("e2el", tally.latencies)
        | {"tokens_per_message": round(tally.message_tokens / tally.messages, 2) if tally.messages else None}
    )
