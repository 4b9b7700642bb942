"""Which weights are trained: all of them, those of the last layers, or a PEFT adapter that is merged afterwards."""

import re
from collections.abc import Sequence
from typing import Any

from tuneserve.checkpoint.layers import block_of, heads
from tuneserve.errors import UserError
from tuneserve.finetune.config import WRITERS, FinetuneConfig

# Shares of a run's steps: where AdaLoRA begins to remove ranks, and how many steps are left when it is done with it.
_ADALORA_BEGIN, _ADALORA_END = 0.1, 0.3
_ADALORA_ALLOCATIONS = 100


def choose_weights(model: Any, new_modules: Sequence[str], config: FinetuneConfig, steps: int) -> Any:
    """Returns the model with the weights that `config.method` trains; new modules are always trained in full.

    `steps`: optimizer steps of the whole run. Raises UserError for layers that the model does not have.
    """
    if config.method != "full":
        return _with_adapter(model, new_modules, config, steps)
    if config.last_layers is not None:
        _freeze_all_but(model, config.last_layers)
    return model


def _freeze_all_but(model: Any, last_layers: int) -> None:
    """Freezes all but the last blocks and the modules after them: the last norm, the pooler, the head."""
    names = [name for name, _ in model.named_parameters()]
    blocks = {name: block_of(name) for name in names}
    depth = 1 + max((block for block in blocks.values() if block is not None), default=-1)
    if last_layers > depth:
        raise UserError(
            f"last_layers is {last_layers}, but the base model has {depth} blocks", f"allowed: 0 to {depth}"
        )
    # Modules are listed in the order in which they are applied.
    last = max((index for index, name in enumerate(names) if blocks[name] is not None), default=-1)
    for index, (name, parameter) in enumerate(model.named_parameters()):
        block = blocks[name]
        parameter.requires_grad = index > last if block is None else block >= depth - last_layers


def _with_adapter(model: Any, new_modules: Sequence[str], config: FinetuneConfig, steps: int) -> Any:
    import peft

    linear = _linear(model)
    scores = heads(model) if config.task in WRITERS else []
    for wanted in config.lora_targets or ():
        if wanted in scores:
            raise UserError(
                f"lora_targets: {wanted} can't have an adapter",
                "it is the output layer over the vocabulary: leave it out",
            )
        if not any(name == wanted or name.endswith(f".{wanted}") for name in linear):
            names = sorted({name.rpartition(".")[2] for name in linear})
            raise UserError(f"lora_targets: no linear layer {wanted}", "this model has " + ", ".join(names))
    types = {
        "token-classification": peft.TaskType.TOKEN_CLS,
        "sequence-classification": peft.TaskType.SEQ_CLS,
        "generation": peft.TaskType.CAUSAL_LM,
        "preference": peft.TaskType.CAUSAL_LM,
        "ranking": peft.TaskType.SEQ_CLS,
        "embedding": peft.TaskType.FEATURE_EXTRACTION,
    }
    common: dict[str, Any] = {"task_type": types[config.task], "modules_to_save": list(new_modules) or None}
    if config.method == "ia3":
        return peft.get_peft_model(model, peft.IA3Config(**common, **_ia3_targets(model)))
    lora: dict[str, Any] = common | {
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": list(config.lora_targets) if config.lora_targets else "all-linear",
    }
    if config.method == "adalora":
        settings: Any = peft.AdaLoraConfig(
            **lora,
            # The initial rank is half as large again; the final average is `lora_rank`.
            init_r=config.lora_rank + (config.lora_rank + 1) // 2,
            target_r=config.lora_rank,
            tinit=int(steps * _ADALORA_BEGIN),
            tfinal=int(steps * _ADALORA_END),
            deltaT=max(1, steps // _ADALORA_ALLOCATIONS),
            total_step=steps,
        )
    else:
        settings = peft.LoraConfig(
            **lora, r=config.lora_rank, use_dora=config.method == "dora", use_rslora=config.method == "rslora"
        )
    return peft.get_peft_model(model, settings)


def _ia3_targets(model: Any) -> dict[str, Any]:
    """Keys, values and the second feed-forward layer of each block, as in the paper; PEFT knows their names.

    For a model that PEFT does not know: the outputs of every linear layer.
    """
    from peft.utils import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    kind = model.config.get_text_config().model_type
    if kind not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        return {"target_modules": "all-linear", "feedforward_modules": []}
    return {
        "target_modules": TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind],
        "feedforward_modules": TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind],
    }


def _linear(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if re.fullmatch(r"Linear.*|Conv1D", type(module).__name__)}
