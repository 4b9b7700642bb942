"""The recipe for applying a scheme: what people read of it, and whether it needs rows."""

import pytest

from tuneserve.quantize.schemes import SCHEMES, Recipe


@pytest.mark.parametrize(
    ("recipe", "label", "needs_rows"),
    [
        (Recipe(SCHEMES["w8a8"]), "w8a8 rtn", False),
        (Recipe(SCHEMES["w4a16"], "gptq", group_size=64, kept=(3,)), "w4a16 gptq without block 3", True),
        (Recipe(SCHEMES["fp8"], fp8_cache=True), "fp8 rtn with an fp8 cache", True),
        (
            Recipe(SCHEMES["w8a8"], "smoothquant", reduce_range=True, kept=(0, 5)),
            "w8a8 smoothquant of reduced range without blocks 0, 5",
            True,
        ),
    ],
)
def test_a_recipe_is_described(recipe: Recipe, label: str, needs_rows: bool) -> None:
    assert (recipe.label, recipe.needs_rows) == (label, needs_rows)
