import json
from pathlib import Path

import pytest

from tuneserve import checkpoint
from tuneserve.errors import UserError
from tuneserve.machine import tiers
from tuneserve.quantize.preflight import Platform, check, group_size, linear_shapes, remarks, served, this_platform
from tuneserve.v1 import checkpoint_pb2 as pb

CPU = Platform(tiers.AVX512_BF16)
OLD_CPU = Platform(tiers.AVX2)
HOPPER = Platform(tiers.GPU, capability=9.0)

DECODER = pb.Checkpoint(architecture="LlamaForCausalLM", task=pb.TASK_GENERATION, dtype="bfloat16")
BERT = pb.Checkpoint(
    architecture="BertForSequenceClassification", task=pb.TASK_SEQUENCE_CLASSIFICATION, dtype="bfloat16"
)
ROBERTA_NER = pb.Checkpoint(
    architecture="RobertaForTokenClassification", task=pb.TASK_TOKEN_CLASSIFICATION, dtype="bfloat16"
)


def changed(manifest: pb.Checkpoint, **fields: object) -> pb.Checkpoint:
    result = pb.Checkpoint(**fields)
    merged = pb.Checkpoint()
    merged.CopyFrom(manifest)
    merged.MergeFrom(result)
    return merged


def headers_only(directory: Path, layers: dict[str, list[int]], **config: object) -> Path:
    """Writes config.json and a weight file that has a header and no tensors: all that the check may read."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    header = json.dumps(
        {f"{name}.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in layers.items()}
    ).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return directory


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Layers whose sizes every scheme takes."""
    return headers_only(tmp_path / "wide", {"model.layers.0.mlp.up_proj": [256, 128]})


@pytest.mark.parametrize(
    ("scheme", "manifest", "platform", "reason"),
    [
        ("fp4", DECODER, CPU, "scheme 'fp4' is unknown"),
        ("w8a8", changed(DECODER, quantization="nf4"), CPU, "already quantized (nf4)"),
        ("w4a16", DECODER, OLD_CPU, "need AVX-512, and this is AVX2"),
        ("w4a16", changed(DECODER, dtype="float32"), CPU, "not float32"),
        ("w8a8", DECODER, Platform(tiers.GPU, capability=7.0), "7.5 or newer"),
        ("w4a16", DECODER, Platform(tiers.GPU, capability=6.1), "7.5 or newer"),
        ("w8a8", DECODER, Platform(tiers.GPU, capability=10.0), "no int8 kernels"),
        ("w8a16", DECODER, CPU, "support 4 bits, not 8"),
        ("fp8", DECODER, CPU, "many times slower"),
        ("fp8", DECODER, Platform(tiers.GPU, capability=8.6), "8.9 or newer"),
        ("nf4", BERT, CPU, "not BertForSequenceClassification"),
        ("int8", BERT, HOPPER, "not BertForSequenceClassification"),
        ("nf4", ROBERTA_NER, CPU, "does not support token classifiers"),
        ("w8a8", changed(DECODER, architecture="GPT2LMHeadModel"), CPU, "Conv1D"),
    ],
)
def test_what_can_not_be_served_is_refused(
    wide: Path, scheme: str, manifest: pb.Checkpoint, platform: Platform, reason: str
) -> None:
    with pytest.raises(UserError) as caught:
        check(scheme, manifest, wide, platform)
    assert reason in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16", "nf4", "int8"])
@pytest.mark.parametrize("platform", [CPU, HOPPER])
def test_a_decoder_takes_every_scheme(wide: Path, scheme: str, platform: Platform) -> None:
    recipe = check(scheme, DECODER, wide, platform)
    assert recipe.scheme.name == scheme
    assert recipe.group_size == (128 if scheme == "w4a16" else None)


@pytest.mark.parametrize("scheme", ["fp8", "w8a16"])
def test_what_only_gpus_take(wide: Path, scheme: str) -> None:
    assert check(scheme, DECODER, wide, HOPPER).scheme.name == scheme


@pytest.mark.parametrize(
    ("scheme", "method", "model_type", "reason"),
    [
        ("w8a8", "awq", "llama", "w8a8 has no method 'awq'"),
        ("nf4", "gptq", "llama", "nf4 has no method 'gptq'"),
        ("w8a8", "smoothquant", "bert", "smoothquant scales the outputs of norms"),
        ("w4a16", "awq", "roberta", "awq scales the outputs of norms"),
    ],
)
def test_methods_that_do_not_fit(tmp_path: Path, scheme: str, method: str, model_type: str, reason: str) -> None:
    directory = headers_only(tmp_path / "m", {"model.layers.0.mlp.up_proj": [256, 128]}, model_type=model_type)
    with pytest.raises(UserError, match=reason):
        check(scheme, DECODER, directory, CPU, method)
    assert check("w4a16", DECODER, directory, CPU, "gptq").method == "gptq"


HEADS = {"model_type": "llama", "hidden_size": 128, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("scheme", "manifest", "platform", "config", "reason"),
    [
        ("w8a8", BERT, CPU, HEADS, "a classifier has no KV cache"),
        ("nf4", DECODER, CPU, HEADS, "can't store the scales"),
        ("w8a8", DECODER, CPU, HEADS | {"model_type": "gpt_neox"}, "supported only for"),
        ("w8a8", DECODER, OLD_CPU, HEADS, "needs AVX-512, and this is AVX2"),
        ("w8a8", DECODER, CPU, HEADS | {"head_dim": 80}, "a multiple of 32, not 80"),
        ("w8a8", DECODER, Platform(tiers.GPU, capability=8.0), HEADS, "8.9 or newer"),
    ],
)
def test_a_small_cache_that_can_not_be_served(
    tmp_path: Path, scheme: str, manifest: pb.Checkpoint, platform: Platform, config: dict[str, object], reason: str
) -> None:
    directory = headers_only(tmp_path / "m", {"model.layers.0.mlp.up_proj": [256, 128]}, **config)
    with pytest.raises(UserError, match=reason):
        check(scheme, manifest, directory, platform, fp8_cache=True)
    assert check("w8a8", DECODER, headers_only(directory, {"model.layers.0.a": [64, 64]}, **HEADS), CPU, fp8_cache=True)


def test_what_is_served_begins_with_the_fastest(wide: Path) -> None:
    def names(manifest: pb.Checkpoint, platform: Platform) -> list[str]:
        return [recipe.scheme.name for recipe in served(manifest, wide, platform)]

    assert names(DECODER, CPU) == ["w8a8", "w4a16", "int8", "nf4"]
    assert names(BERT, OLD_CPU) == ["w8a8"]
    assert names(DECODER, HOPPER) == ["fp8", "w8a8", "w4a16", "w8a16", "nf4", "int8"]
    assert names(DECODER, Platform(tiers.GPU, capability=8.0))[0] == "w8a8"


def test_roberta_classifiers_take_bitsandbytes(wide: Path) -> None:
    roberta = changed(BERT, architecture="RobertaForSequenceClassification")
    assert check("nf4", roberta, wide, CPU).scheme.name == "nf4"


def test_the_hint_names_what_would_do(wide: Path) -> None:
    with pytest.raises(UserError) as caught:
        check("nf4", BERT, wide, CPU)
    assert caught.value.hint == "supported for this model on this machine: w8a8, w4a16"


def test_mixtures_of_experts_are_refused(tmp_path: Path) -> None:
    directory = headers_only(tmp_path / "moe", {"model.layers.0.q": [64, 64]}, num_local_experts=8)
    with pytest.raises(UserError, match="mixture of experts"):
        check("w8a8", changed(DECODER, architecture="MixtralForCausalLM"), directory, CPU)


def test_a_model_without_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to quantize"):
        check("w8a8", DECODER, headers_only(tmp_path / "flat", {"lm_head": [64, 64]}), CPU)


@pytest.mark.parametrize(
    ("scheme", "shape", "reason"),
    [
        ("w4a16", [48, 64], "multiple of 32"),
        ("w4a16", [64, 48], "input size of 32"),
        ("nf4", [64, 96], "input size of 64"),
    ],
)
def test_sizes_that_the_cpu_kernels_do_not_take(tmp_path: Path, scheme: str, shape: list[int], reason: str) -> None:
    directory = headers_only(tmp_path / "odd", {"model.layers.0.mlp.up_proj": shape})
    with pytest.raises(UserError, match=reason):
        check(scheme, DECODER, directory, CPU)
    assert check("w8a8", DECODER, directory, CPU)


@pytest.mark.parametrize(
    ("inputs", "size"), [([256, 1024], 128), ([576, 1536], 64), ([384, 96], 32), ([64], 64), ([32], 32)]
)
def test_the_largest_group_that_divides_every_layer(inputs: list[int], size: int) -> None:
    assert group_size({f"layer.{i}": (8, n) for i, n in enumerate(inputs)}) == size


def test_no_group_divides(tmp_path: Path) -> None:
    directory = headers_only(tmp_path / "odd", {"model.layers.0.a": [64, 64], "model.layers.1.b": [64, 80]})
    with pytest.raises(UserError, match=r"model\.layers\.1\.b, 80"):
        check("w4a16", DECODER, directory, HOPPER)


def test_only_layers_in_blocks_count(bert: Path, llama: Path) -> None:
    shapes = linear_shapes(bert)
    assert len(shapes) == 2 * 6
    assert shapes["bert.encoder.layer.1.intermediate.dense"] == (128, 64)
    assert not any("pooler" in name or "classifier" in name or "embeddings" in name for name in shapes)
    assert len(linear_shapes(llama)) == 2 * 7


def test_real_checkpoints_pass_on_this_machine(bert: Path, llama: Path) -> None:
    for directory in (bert, llama):
        assert check("w8a8", checkpoint.load(directory), directory, this_platform())


def test_what_is_to_be_known_of_w8a8_on_a_cpu(wide: Path) -> None:
    for tier in (tiers.AVX512_VNNI, tiers.AVX512_BF16, tiers.GPU):
        assert remarks(check("w8a8", DECODER, wide, Platform(tier), reduce_range=True), Platform(tier)) == []
    saturates, slow = remarks(check("w8a8", DECODER, wide, OLD_CPU), OLD_CPU)
    assert "would saturate on AVX2" in saturates
    assert slow == "w8a8 saves memory on AVX2; whether it is faster than float32 is measured"
    assert remarks(check("nf4", DECODER, wide, OLD_CPU), OLD_CPU) == []


def test_weights_get_a_reduced_range_where_the_platform_needs_it(wide: Path, tier: tiers.Tier) -> None:
    platform = Platform(tier)
    assert check("w8a8", DECODER, wide, platform).reduce_range == (tier in (tiers.AVX2, tiers.AVX512))
    assert check("w8a8", DECODER, wide, platform, reduce_range=True).reduce_range
    assert not any(check(one, DECODER, wide, CPU, reduce_range=True).reduce_range for one in ("w4a16", "nf4", "int8"))
