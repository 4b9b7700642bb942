"""Greedy answers of a model for generation, in batches."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from tuneserve.checkpoint import examples
from tuneserve.checkpoint.rows import Row
from tuneserve.evaluation import quality
from tuneserve.finetune.data.tokens import Target

BATCH = 16
SAMPLE_TOKENS = 64


def answers(model: Any, tokenizer: Any, target: Target, rows: Sequence[Row], tokens: int) -> list[str]:
    """Returns the model's answers of at most this many tokens. A prompt that leaves no room loses its beginning."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or target.max_length + tokens
    tokens = min(tokens, positions // 2)
    asked = (examples.example(tokenizer, row, target.max_length) for row in rows)
    prompts = [one.ids[: one.start][-(positions - tokens) :] for one in asked]
    found = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda place: len(prompts[place]))
    for start in tqdm(range(0, len(order), BATCH), desc="answering", unit="batch", leave=False, dynamic_ncols=True):
        places = order[start : start + BATCH]
        batch = tokenizer.pad(
            {"input_ids": [prompts[place] for place in places]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            output = model.generate(
                **batch,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        for place, ids in zip(places, output[:, batch["input_ids"].shape[1] :], strict=True):
            found[place] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return found


def samples(rows: Sequence[Row], given: Sequence[str]) -> list[Row]:
    """Returns answers beside the expected ones: {"prompt", "expected", "answer"}."""
    return [
        {
            "prompt": row["prompt"] if "prompt" in row else row["messages"][-2]["content"],
            "expected": quality.expected_answer(row),
            "answer": answer,
        }
        for row, answer in zip(rows, given, strict=False)
    ]
