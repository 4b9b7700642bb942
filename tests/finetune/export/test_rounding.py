"""Weights rounded to bf16: what was learned stays, also where it is less than a step of bf16."""

import math

import torch

from tuneserve.finetune.export import rounding

# The next bf16 number after 1.
STEP = 2**-7


def rounded(weights: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return rounding.stochastic(weights, torch.Generator().manual_seed(seed))


def test_each_is_one_of_its_neighbours_and_their_mean_is_kept() -> None:
    for weight in (1 + 0.1 * STEP, 1 + 0.9 * STEP, -1 - 0.3 * STEP):
        found = rounded(torch.full((100_000,), weight))
        low = math.copysign(1, weight)
        assert set(found.tolist()) == {low, low * (1 + STEP)}
        # Five times as far as the chance of one in a hundred thousand is off.
        assert abs(float(found.double().mean()) - weight) < 0.008 * STEP


def test_what_bf16_has_already_stays() -> None:
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    weights[:5] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    assert rounded(weights).view(torch.int32).equal(weights.view(torch.int32))


def test_what_was_learned_is_still_there() -> None:
    chance = torch.Generator().manual_seed(2)
    base = torch.randn(256, 512, generator=chance).bfloat16().float()
    up, down = torch.randn(256, 1, generator=chance), torch.randn(1, 512, generator=chance)
    learned = 1e-4 * up @ down
    given = torch.nn.functional.normalize(down).T
    # Far less than half a step: the nearest of almost all is where they were.
    nearest = (base + learned).bfloat16().float() - base
    assert float((nearest @ given).norm() / (learned @ given).norm()) < 0.5
    kept = (rounded(base + learned) - base) @ given
    assert torch.nn.functional.cosine_similarity(kept, learned @ given, dim=0).item() > 0.8


def test_a_model_is_rounded_in_place_the_same_each_time() -> None:
    def made() -> torch.nn.Module:
        torch.manual_seed(3)
        model = torch.nn.Sequential(
            torch.nn.Embedding(50, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 50, bias=False)
        )
        model[2].weight = model[0].weight
        return rounding.to_bf16(model)

    first, second = made(), made()
    assert first[2].weight is first[0].weight
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one.dtype == torch.bfloat16
        assert one.equal(other)
