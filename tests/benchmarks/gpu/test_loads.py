"""Every system of a phase gets the same work."""

import pytest

from tuneserve.benchmarks.gpu.loads import Load, loads
from tuneserve.benchmarks.gpu.shapes import MODELS, TINY, Roofs, Shape
from tuneserve.benchmarks.serving.load.texts import SENTENCES

EVERY = [
    (shape, load, shape in TINY)
    for shape in (*MODELS, *TINY)
    for several in (False, True)
    for load in loads(shape, shape in TINY, several)
]


@pytest.mark.parametrize(("shape", "load", "tiny"), EVERY, ids=lambda one: getattr(one, "name", ""))
def test_a_load_is_the_same_work_whatever_its_seed(shape: Shape, load: Load, tiny: bool) -> None:
    first, second = (load.job(shape, seed) for seed in (1, 2))
    assert first != second
    assert sorted(map(str, first.texts)) == sorted(map(str, second.texts))
    assert [len(prompt) for prompt in first.prompts] == [len(prompt) for prompt in second.prompts]
    assert len(first.texts) % len(SENTENCES) == 0
    assert all(id_ < shape.vocabulary for prompt in first.prompts for id_ in prompt)
    # As many calls as there are connections, at least.
    assert len(first.pieces()) >= load.connections
    trial = load.trial(shape)
    assert (len(trial.pieces()), trial.stream, trial.connections) == (1, first.stream, 1)
    roof = load.roof(Roofs(4e12, {"bf16": 7e14}), shape, "bf16", 20)
    assert roof is not None
    assert roof > 100


def test_several_processes_get_many_connections() -> None:
    for shape in MODELS:
        assert min(load.connections for load in loads(shape, tiny=False, several=True)) >= 16
        assert min(load.connections for load in loads(shape, tiny=False)) == 1
