"""The policy: a YAML file that says when to retrain, how, and what a better model is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from tuneserve import settings, yamls
from tuneserve.settings import Count, Local, Named, Refused, Settings, Text

# What the loop itself gives to finetune.
_OWN = ("task", "base_model", "continue_from", "train", "output", "problem_type")


class CanaryConfig(Settings):
    """A running server that gets the new checkpoint. With API keys, TUNESERVE_KEY has one of role admin."""

    target: Text = Field(default="localhost:8033", description="HOST:PORT for administrators")
    model: Text = Field(description="the model's name, an alias of one version")
    models_root: Local = Field(description="the server's `models_root`, as it is called here; `output` is below it")
    tls: bool = Field(default=False, description="whether the port has TLS")
    ca: Local | None = Field(default=None, description="a PEM file with the authority of the server's certificate")
    percent: Annotated[int, Field(ge=1, le=99)] = Field(
        default=10, description="share of the calls that go to the new version first"
    )
    seconds: Annotated[float, Field(ge=0)] = Field(default=600.0, description="how long they do")
    metrics: Text | None = Field(
        default=None, description="URL of the server's /metrics, to count the new version's calls and errors"
    )
    calls: Count | None = Field(
        default=None,
        description="calls that the new version must have ended within `seconds`; the canary ends with the last",
    )
    max_error_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of the new version's calls that may fail by INTERNAL, UNAVAILABLE or UNKNOWN"
    )

    @model_validator(mode="after")
    def _counts_need_metrics(self) -> "CanaryConfig":
        if self.calls and not self.metrics:
            raise Refused("calls is given, and no metrics", "for example metrics: http://localhost:9033/metrics")
        return self


class RetrainConfig(Settings):
    """When a model is trained again, how, and what makes the new one better: the file of `tuneserve retrain`."""

    feedback: Local = Field(description="files that FeedbackService wrote, of one kind; * is any name in a path")
    checkpoint: Local = Field(description="the checkpoint to begin with")
    output: Local = Field(
        description="the directory of new checkpoints, and of what was tried; OUTPUT/current leads to the best one"
    )
    min_rows: Count = Field(default=200, description="how many new rows it takes to train again")
    finetune: Annotated[Mapping[str, Any], Named] = Field(
        default={},
        description="settings of `tuneserve finetune`, such as `replay`, a file of old rows; by default replay_share "
        "is 0.5 and test_size 0.2",
    )
    max_drop: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.02, description="the most that may be lost on the old held-out rows, with 95 % confidence"
    )
    min_gain: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="more than this must be gained on the new held-out rows, with 95 % confidence"
    )
    point_estimate: bool = Field(
        default=False, description="compare the measured differences themselves with these: for few rows"
    )
    remove_learned: bool = Field(
        default=False,
        description="remove rows from `feedback` once a promoted checkpoint has learned them; not if another policy "
        "reads the same files",
    )
    server: CanaryConfig | None = Field(
        default=None, description="where a better checkpoint is tried and promoted; null: nowhere"
    )

    @field_validator("finetune")
    @classmethod
    def _not_the_loops_own(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        for key in _OWN:
            if key in given:
                raise Refused(f"{key} is given", "the loop sets it from `checkpoint`, `feedback` and `output`", key=key)
        return given

    @model_validator(mode="after")
    def _below_models_root(self) -> "RetrainConfig":
        if self.server and not self.output.resolve().is_relative_to(self.server.models_root.resolve()):
            raise Refused("output is not below server.models_root", "the server loads only from there")
        return self


def load(path: Path) -> RetrainConfig:
    """Reads a policy. Relative paths are relative to it. Raises UserError naming the key."""
    return settings.build(RetrainConfig, yamls.read(path), str(path), path.absolute().parent)
