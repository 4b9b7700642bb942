"""The `engine:` mapping of a model, checked against the vLLM that is installed, without importing it."""

import subprocess
import sys

import pytest

from tuneserve.errors import UserError
from tuneserve.server import engine_options

PASSED_ON = """
    block_size data_parallel_size enable_prefix_caching enforce_eager max_num_batched_tokens pipeline_parallel_size
    scheduling_policy speculative_config structured_outputs_config tensor_parallel_size max_cpu_loras
"""


@pytest.fixture
def vllm():
    """Tests that need vLLM's source have it where vLLM is installed."""
    if not engine_options._known():
        pytest.skip("vLLM is not installed")


def test_what_vllm_has_is_passed_on(vllm):
    engine_options.check(dict.fromkeys(PASSED_ON.split()), "models.chat.engine")


def test_every_option_of_ours_is_one_of_vllms(vllm):
    assert engine_options.OURS.keys() <= engine_options._known()


@pytest.mark.parametrize("key", sorted(engine_options.OURS))
def test_ours_are_refused_with_the_setting_to_use(key):
    with pytest.raises(UserError, match=rf"^models\.chat\.engine: '{key}' ") as caught:
        engine_options.check({key: 1}, "models.chat.engine")
    assert engine_options.OURS[key] in caught.value.hint


def test_an_unknown_option_is_refused_with_the_nearest(vllm):
    with pytest.raises(UserError, match="no engine option 'tensor_paralel_size'") as caught:
        engine_options.check({"tensor_paralel_size": 2}, "models.chat.engine")
    assert caught.value.hint == "did you mean tensor_parallel_size?"
    with pytest.raises(UserError, match="no engine option 'xyzzy'"):
        engine_options.check({"block_size": 32, "xyzzy": 2}, "models.chat.engine")


def test_without_vllm_names_are_not_checked(monkeypatch):
    monkeypatch.setattr(engine_options, "_known", frozenset)
    engine_options.check({"xyzzy": 1}, "models.chat.engine")
    with pytest.raises(UserError):
        engine_options.check({"model": "x"}, "models.chat.engine")


def test_vllm_is_not_imported():
    code = (
        "import sys; from tuneserve.server import engine_options; engine_options.check({'block_size': 32}, 'x'); "
        "sys.exit(bool({'vllm', 'torch'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
