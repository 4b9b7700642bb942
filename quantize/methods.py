"""How the weights are rounded, as modifiers of llm-compressor.

    rtn          round to nearest; needs no data
    smoothquant  first moves outliers of the activations into the weights (Xiao et al. 2023)
    gptq         column by column, each compensating the errors of the earlier ones (Frantar et al. 2023)
    awq          first scales up the weights that are multiplied with large activations (Lin et al. 2024)

smoothquant and awq scale the output of a norm and unscale it in the layers that read it. That leaves the model's output
unchanged only if no other layer reads the norm. In BERT and RoBERTa the residual stream reads it, too.

Processors without VNNI multiply int8 weights with activations of 0 to 255 (shifted to be unsigned) and add two products
in 16 bits, which saturate: weights from -64 to 64 are exact, as 2 * 255 * 64 = 32,640 is below 2^15 = 32,768. Weights
of a reduced range are rounded to 7 bits, -64 to 63, and stored as int8 like the others. The loss of quality is in
benchmarks/results/2026-11-28-int8-range.md: little with rtn, half as much again with smoothquant.
"""

import json
from pathlib import Path
from typing import Any

from tuneserve.quantize.schemes import Recipe, Scheme

# `model_type` in config.json of models whose norms feed only the next layers, and whose layer names are known here.
LLAMA_LIKE = ("granite", "llama", "mistral", "qwen2", "qwen3")
# The first block's attention has no norm of its own.
_MODERNBERT = {
    r"re:.*layers\.[1-9]\d*\.attn_norm$": [r"re:.*layers\.[1-9]\d*\.attn\.Wqkv$"],
    r"re:.*layers\.\d+\.mlp_norm$": [r"re:.*layers\.\d+\.mlp\.Wi$"],
}
_LLAMA = {
    "re:.*input_layernorm$": ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"],
    "re:.*post_attention_layernorm$": ["re:.*gate_proj$", "re:.*up_proj$"],
}
# The output of the second layer is linear in that of the first: AWQ scales these pairs as well.
_LLAMA_LINEAR = {"re:.*v_proj$": ["re:.*o_proj$"], "re:.*up_proj$": ["re:.*down_proj$"]}
SCALED = (*LLAMA_LIKE, "modernbert")
# How much of the outliers moves into the weights. Llamas have larger outliers than the models of the paper, which uses
# 0.5: with 0.5, a chat model's perplexity rose by 3.3 %, with 0.8 by 2.8 % (benchmarks/results).
_SMOOTHING, _LLAMA_SMOOTHING = 0.5, 0.8
_REDUCED_BITS = 7


def unfit(method: str, model_type: str) -> str:
    """Returns why a method can't be applied to a kind of model, or an empty text."""
    if method in ("rtn", "gptq") or model_type in SCALED:
        return ""
    return f"{method.partition('-')[0]} scales the outputs of norms, which is supported only for {', '.join(SCALED)}"


def usable(scheme: Scheme, model_type: str, has_rows: bool) -> list[str]:
    """Returns the methods of a scheme that can be applied, in the order to try them."""
    return [one for one in scheme.methods if (one == "rtn" or has_rows) and not unfit(one, model_type)]


def modifiers(recipe: Recipe, ignore: list[str], model_type: str) -> list[Any]:
    """Returns llm-compressor's modifiers for a recipe. `ignore`: linear layers that are not quantized."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    common = {"ignore": ignore, "kv_cache_scheme": cache if recipe.fp8_cache else None, **_numbers(recipe)}
    rounding = GPTQModifier if recipe.method.endswith("gptq") else QuantizationModifier
    return [*scaling(recipe.method, model_type), rounding(**common)]


def _numbers(recipe: Recipe) -> dict[str, Any]:
    """The number format, the same for all methods. The target is the class, not names: vLLM fuses query, key and value
    into one layer of another name.
    """
    if recipe.reduce_range:
        weights = {"num_bits": _REDUCED_BITS, "type": "int", "symmetric": True, "strategy": "channel"}
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}}
    presets = {"w8a8": "W8A8", "fp8": "FP8_DYNAMIC"}
    if preset := presets.get(recipe.scheme.name):
        return {"targets": ["Linear"], "scheme": preset}
    groups = {"strategy": "group", "group_size": recipe.group_size} if recipe.group_size else {"strategy": "channel"}
    weights = {"num_bits": recipe.scheme.bits, "type": "int", "symmetric": True, **groups}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def declare_stored_bits(directory: Path) -> None:
    """For weights of a reduced range, sets the stored number of bits in config.json, which is all that readers need."""
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for group in config["quantization_config"]["config_groups"].values():
        group["weights"]["num_bits"] = 8
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def scaling(method: str, model_type: str) -> list[Any]:
    """Returns the modifiers that run before rounding; by themselves they change no output."""
    norms = _MODERNBERT if model_type == "modernbert" else _LLAMA
    if method.startswith("smoothquant"):
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        strength = _LLAMA_SMOOTHING if norms is _LLAMA else _SMOOTHING
        return [
            SmoothQuantModifier(
                smoothing_strength=strength, mappings=[[layers, norm] for norm, layers in norms.items()]
            )
        ]
    if method == "awq":
        from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

        pairs = norms | (_LLAMA_LINEAR if norms is _LLAMA else {})
        return [AWQModifier(mappings=[AWQMapping(one, layers) for one, layers in pairs.items()])]
    return []
