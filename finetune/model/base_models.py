"""Loads base models with the head of a task, and tokenizers; knows which classes vLLM can serve."""

import logging
from pathlib import Path
from typing import Any

from tuneserve.checkpoint import adapters, encoders
from tuneserve.checkpoint.layers import heads
from tuneserve.checkpoint.tasks import TRAINABLE, auto_class
from tuneserve.errors import CheckpointError, UserError
from tuneserve.finetune.data.tokens import Target
from tuneserve.machine import tiers

logger = logging.getLogger(__name__)

# Model classes that vLLM 0.26 to 0.33 implements (its models/registry.py). Others could be trained, but not served.
# For classification, vLLM converts decoders itself.
# fmt: off
_DECODERS = (
    "Apertus", "Bloom", "Cohere", "Cohere2", "DeepseekV2", "DeepseekV3", "Exaone4", "Falcon", "FalconH1",
    "FalconMamba", "GPTJ", "Gemma", "Gemma2", "Gemma3", "Glm4", "GptOss", "Granite", "GraniteMoe",
    "GraniteMoeHybrid", "Jamba", "Lfm2", "Llama", "Mamba", "Mamba2", "MiniCPM3", "Mistral", "Mixtral",
    "Nemotron", "OPT", "Olmoe", "Phi3", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Qwen3Next", "StableLm",
    "Zamba2",
)
# Those of them for which transformers has a token classifier with the head that vLLM expects.
_TAGGERS = (
    "Apertus", "DeepseekV3", "Exaone4", "Gemma", "Gemma2", "Glm4", "GptOss", "Llama", "Mistral", "Mixtral", "Nemotron",
    "Phi3", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Qwen3Next", "StableLm",
)
# Those of them that vLLM knows without a head.
_EMBEDDERS = ("Gemma2", "Llama", "Mistral", "Qwen2")
# fmt: on
SERVABLE = {
    "token-classification": [
        f"{name}ForTokenClassification" for name in ("Bert", "Roberta", "XLMRoberta", "ModernBert", *_TAGGERS)
    ],
    "sequence-classification": [
        f"{name}ForSequenceClassification"
        for name in ("Bert", "Roberta", "XLMRoberta", "ModernBert", "GPT2", *_DECODERS)
    ],
    "ranking": [f"{name}ForSequenceClassification" for name in ("Bert", "Roberta", "XLMRoberta", "ModernBert")],
    "embedding": [f"{name}Model" for name in ("Bert", "Roberta", "XLMRoberta", "ModernBert", *_EMBEDDERS)],
    "generation": ["GPT2LMHeadModel", *(f"{name}ForCausalLM" for name in _DECODERS)],
}
SERVABLE["preference"] = SERVABLE["generation"]


def check_servable(task: str, base_model: str) -> None:
    """Raises UserError if the base model can't be read, has no head for the task, or can't be served by vLLM."""
    try:
        adapters.refuse(Path(base_model))
    except CheckpointError as error:
        raise UserError(f"base_model: {error}", error.hint) from None
    config = read(base_model, "AutoConfig")
    if "quantization_config" in config.to_dict():
        raise UserError(
            f"base_model: {base_model} is quantized", "train and merge on the original weights, then quantize"
        )
    # Private, but the only place where transformers says which class a config selects.
    mapping = auto_class(TRAINABLE[task])._model_mapping
    found = mapping.get(type(config), None)
    candidates = found if isinstance(found, tuple | list) else [found]
    names = [model.__name__ for model in candidates if model is not None]
    if not set(names) & set(SERVABLE[task]):
        what = names[0] if names else f"a {config.model_type} model"
        allowed = [name for name in SERVABLE[task] if "Roberta" in name or "Bert" in name] or SERVABLE[task]
        raise UserError(
            f"base_model: {base_model}: vLLM has no {what} for {task}",
            f"choose a base model of another class, such as {', '.join(allowed[:8])}",
        )


def load_tokenizer(base_model: str, key: str = "base_model") -> Any:
    """Returns a model's tokenizer, with a padding token. `key` is the setting that names the model."""
    tokenizer = read(base_model, "AutoTokenizer", key)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    target: Target, base_model: str, pad_token_id: int | None = None, *, nf4: bool = False
) -> tuple[Any, list[str]]:
    """Returns the model in fp32 and the names of the modules that its checkpoint lacks: the new head.

    With `nf4` the linear layers of its blocks are stored in 4 bits and computed in fp32.
    """
    import torch

    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    if nf4:
        options["quantization_config"] = _nf4(target.task, base_model)
    if target.labels:
        options["num_labels"] = len(target.labels)
        options["id2label"] = dict(enumerate(target.labels))
        options["label2id"] = {label: index for index, label in enumerate(target.labels)}
        # A base with another number of labels gets a new head too.
        options["ignore_mismatched_sizes"] = True
    if target.task == "sequence-classification":
        kind = target.problem_type.replace("-", "_")
        options["problem_type"] = kind if kind == "regression" else f"{kind}_classification"
    model, info = auto_class(TRAINABLE[target.task]).from_pretrained(base_model, **options)
    if target.task == "ranking":
        model.config.sentence_transformers = encoders.CROSS_ENCODER
    if target.pooling and getattr(model, "pooler", None) is not None:
        # BERT's own pooling, which no vector is made with.
        model.pooler = None
        info["missing_keys"] = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    for module in model.modules() if nf4 else ():
        # On some CPUs bitsandbytes computes differently in evaluation than in training, and less exactly.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = pad_token_id
    new = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    return model, _whole_modules(model, new)


def _nf4(task: str, base_model: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        kept = heads(auto_class(TRAINABLE[task]).from_config(read(base_model, "AutoConfig")))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=kept,
    )


def _whole_modules(model: Any, keys: set[str]) -> list[str]:
    """Returns the topmost modules all of whose parameters are in `keys`."""
    chosen: list[str] = []
    for name, module in model.named_modules():
        parameters = {f"{name}.{key}" for key, _ in module.named_parameters()}
        inside = any(name.startswith(f"{parent}.") for parent in chosen)
        if name and parameters and not inside and parameters <= keys:
            chosen.append(name)
    return chosen


def max_length(base_model: str, tokenizer: Any) -> int:
    """Returns the largest number of tokens that the base model can read."""
    config = read(base_model, "AutoConfig").get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(min(positions, tokenizer.model_max_length))


def has_dropout(base_model: str) -> bool:
    """Returns whether the base model has dropout, so that its outputs differ each time while it is trained."""
    settings = read(base_model, "AutoConfig").get_text_config().to_dict()
    # GPT-2's own summary dropout is not part of the heads that are used here.
    names = [name for name in settings if name.endswith(("dropout", "dropout_prob", "pdrop")) and "summary" not in name]
    return any(isinstance(settings[name], float) and settings[name] > 0 for name in names)


def use_bf16(precision: str) -> bool:
    """Returns whether to compute in bf16. Raises UserError if bf16 is asked for and the GPU lacks it."""
    import torch

    if precision == "bf16" and torch.cuda.is_available() and not bf16_is_fast():
        raise UserError("precision: this GPU has no bf16", "set precision to auto or fp32")
    return precision == "bf16" or (precision == "auto" and bf16_is_fast())


def bf16_is_fast() -> bool:
    """Returns whether this machine computes in bf16 without emulating it."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return tiers.this_tier().dtype == "bfloat16"


def quiet() -> None:
    """Silences what the training libraries print about themselves; errors still come through."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def read(base_model: str, auto: str, key: str = "base_model") -> Any:
    """Returns what one of transformers' auto classes loads. Raises UserError naming the setting `key`."""
    import transformers

    try:
        return getattr(transformers, auto).from_pretrained(base_model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}: {base_model} could not be loaded: {str(error).strip().splitlines()[0]}",
            "give a Hugging Face directory, or a hub id that this machine can reach",
        ) from None
