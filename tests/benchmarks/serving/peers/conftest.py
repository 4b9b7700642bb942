"""A tiny classifier for real peers."""

from pathlib import Path

import pytest

from tuneserve.benchmarks.serving import small_model


@pytest.fixture(scope="session")
def classifier(make_bert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights are so far apart that texts get different labels."""
    import torch

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("classifier") / "checkpoint"
    small_model.write(make_bert(initializer_range=0.5), path, pooling=True)
    return path
