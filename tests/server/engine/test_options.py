"""The options of a model's engine, and its `engine:` mapping checked against the vLLM that is installed."""

import subprocess
import sys
from dataclasses import fields

import pytest

from tuneserve import checkpoint, settings
from tuneserve.errors import UserError
from tuneserve.server.config import ModelConfig
from tuneserve.server.engine import options as engine_options
from tuneserve.server.engine.hardware import Hardware
from tuneserve.v1 import checkpoint_pb2 as pb
from tuneserve.v1 import model_admin_pb2

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


def test_the_names_are_those_of_vllms_class(make_parsers):
    """The fixture imports vLLM without a word of its own."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    names = {field.name for field in fields(AsyncEngineArgs)}
    assert names <= engine_options._known()
    assert len(engine_options._known() - names) < 3, "vLLM itself refuses these when the engine starts"


def test_every_option_of_ours_is_one_of_vllms(vllm):
    assert engine_options.OURS.keys() <= engine_options._known()


def test_what_may_be_set_while_the_server_runs_is_vllms_and_not_ours(vllm):
    engine_options.check(dict.fromkeys(model_admin_pb2.EngineOptions.DESCRIPTOR.fields_by_name), "settings.engine")


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


def test_an_encoder_without_a_pooling_is_refused(make_bert):
    directory = make_bert("Model", [])
    config = ModelConfig(path=directory)
    engine_options.check_pooling(config, checkpoint.describe(directory), "models.vectors")
    (directory / "modules.json").unlink()
    manifest = checkpoint.describe(directory)
    with pytest.raises(UserError, match=r"^models\.vectors: how this encoder pools its tokens is not known"):
        engine_options.check_pooling(config, manifest, "models.vectors")
    given = ModelConfig(path=directory, engine={"pooler_config": {"pooling_type": "MEAN"}})
    engine_options.check_pooling(given, manifest, "models.vectors")


@pytest.mark.parametrize(("key", "known"), [("tool_parser", "hermes"), ("reasoning_parser", "deepseek_r1")])
def test_a_parser_is_one_of_those_for_models_that_write(tmp_path, key, known):
    config = settings.build(ModelConfig, {"path": str(tmp_path), key: known}, "models.chat")
    engine_options.check_parsers(config, pb.TASK_GENERATION, "models.chat")
    with pytest.raises(UserError, match=rf"^models\.chat\.{key}: only generation models have one"):
        engine_options.check_parsers(config, pb.TASK_EMBEDDING, "models.chat")
    with pytest.raises(UserError, match=rf"^models\.chat: {key}: 'herms' is not allowed") as caught:
        settings.build(ModelConfig, {"path": str(tmp_path), key: "herms"}, "models.chat")
    assert f", {known}, " in caught.value.hint.replace("one of ", ", ")


def test_without_vllm_names_are_not_checked(monkeypatch):
    monkeypatch.setattr(engine_options, "_known", frozenset)
    engine_options.check({"xyzzy": 1}, "models.chat.engine")
    with pytest.raises(UserError):
        engine_options.check({"model": "x"}, "models.chat.engine")


def test_vllm_is_not_imported():
    code = (
        "import sys; from tuneserve.server.engine import options; options.check({'block_size': 32}, 'x'); "
        "sys.exit(bool({'vllm', 'torch'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """The engine's options for a model on a CPU."""
    monkeypatch.setattr(engine_options, "has_nvidia_gpu", lambda: False)

    def make(task=pb.TASK_GENERATION, architecture="", lineage=(), quantization="", **settings):
        hardware = Hardware("bfloat16", 1 << 30, enforce_eager=True)
        manifest = pb.Checkpoint(
            task=task, architecture=architecture, max_length=64, lineage=lineage, quantization=quantization
        )
        return engine_options.arguments("chat", ModelConfig(path=tmp_path, **settings), manifest, hardware)

    return make


def test_every_option_is_one_of_vllms(vllm, arguments):
    assert arguments(max_adapters=2).keys() <= engine_options._known()
    assert arguments(pb.TASK_EMBEDDING).keys() <= engine_options._known()


def test_the_models_own_options_go_last(arguments):
    assert arguments()["scheduling_policy"] == "priority"
    assert arguments(engine={"scheduling_policy": "fcfs"})["scheduling_policy"] == "fcfs"
    own = arguments(engine={"structured_outputs_config": {"disable_any_whitespace": True}})
    assert own["structured_outputs_config"] == {"backend": "guidance", "disable_any_whitespace": True}


def test_encoders_have_a_runner_of_their_own(arguments):
    assert arguments(pb.TASK_SEQUENCE_CLASSIFICATION)["runner"] == "pooling"
    embedding = arguments(pb.TASK_EMBEDDING)
    assert (embedding["runner"], embedding["convert"]) == ("pooling", "embed")
    assert "block_size" not in embedding


def test_decoders_judge_tokens_with_what_judges_texts(arguments):
    decoder = arguments(pb.TASK_TOKEN_CLASSIFICATION, "Qwen3ForTokenClassification")
    assert decoder["hf_overrides"] == {"architectures": ["Qwen3ForSequenceClassification"]}
    assert decoder["pooler_config"] == {"task": "token_classify"}
    assert "hf_overrides" not in arguments(pb.TASK_TOKEN_CLASSIFICATION, "BertForTokenClassification")


def test_classifiers_read_what_they_were_trained_at(arguments):
    trained = {"lineage": [pb.Step(name="base"), pb.Step(name="finetune"), pb.Step(name="quantize")]}
    for task in (pb.TASK_SEQUENCE_CLASSIFICATION, pb.TASK_TOKEN_CLASSIFICATION):
        assert arguments(task, **trained)["max_model_len"] == 64
        assert arguments(task, max_length=100, **trained)["max_model_len"] == 100
        # Other people's: as vLLM has it.
        assert "max_model_len" not in arguments(task)
    # An answer may be longer than the rows of training.
    assert "max_model_len" not in arguments(pb.TASK_GENERATION, **trained)


def test_adapters_are_padded_to_a_rank_there_is(arguments):
    assert "enable_lora" not in arguments()
    assert arguments(max_adapters=2, max_adapter_rank=17)["max_lora_rank"] == 32
    many = arguments(max_adapters=20)
    assert (many["max_loras"], many["max_cpu_loras"], many["max_lora_rank"]) == (20, 20, 16)


def test_gpus_keep_vllms_own_operators_and_blocks(arguments, monkeypatch):
    assert arguments(max_adapters=1)["worker_extension_cls"].endswith("engine.on_cpu.lora.Worker")
    monkeypatch.setattr(engine_options, "has_nvidia_gpu", lambda: True)
    assert not {"worker_extension_cls", "block_size"} & arguments(max_adapters=1).keys()
    assert "worker_extension_cls" not in arguments(quantization="nf4")
    assert "worker_extension_cls" not in arguments()


def test_weights_of_four_bits_load_in_float32_on_cpus(arguments):
    assert arguments(quantization="nf4", max_adapters=1)["worker_extension_cls"].endswith("engine.on_cpu.nf4.Worker")
    assert arguments(quantization="w8a8")["worker_extension_cls"].endswith("engine.on_cpu.seeds.Worker")


def test_only_generation_makes_texts(arguments):
    assert arguments(pb.TASK_EMBEDDING)["skip_tokenizer_init"] is True
    assert "skip_tokenizer_init" not in arguments()


def test_weights_of_eight_bits_have_their_own_products_on_cpus(arguments):
    encoder = arguments(pb.TASK_EMBEDDING, quantization="w8a8")
    assert encoder["worker_extension_cls"].endswith("engine.on_cpu.zen.Worker")
    assert "worker_extension_cls" not in arguments(pb.TASK_EMBEDDING)


def test_the_steps_of_generation_on_cpus_are_short(arguments):
    assert arguments()["max_num_batched_tokens"] == 1024
    assert arguments(max_num_seqs=2000)["max_num_batched_tokens"] == 2000, "vLLM wants one token a sequence, at least"
    assert arguments(engine={"max_num_batched_tokens": 4096})["max_num_batched_tokens"] == 4096
    assert "max_num_batched_tokens" not in arguments(engine={"enable_chunked_prefill": False})
    assert "max_num_batched_tokens" not in arguments(pb.TASK_SEQUENCE_CLASSIFICATION)
