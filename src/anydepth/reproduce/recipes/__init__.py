"""The recipes, in the order of the paper."""

from collections.abc import Mapping

from anydepth.reproduce.recipe import Recipe
from anydepth.reproduce.recipes import (
    clip,
    collapse,
    depths,
    glue,
    larger,
    objectives,
    parameters,
    perplexity,
    progression,
    regulariser,
    skip,
    transfer,
    weights,
)

_MODULES = (
    progression,
    depths,
    objectives,
    glue,
    perplexity,
    skip,
    regulariser,
    weights,
    collapse,
    transfer,
    larger,
    clip,
    parameters,
)
RECIPES: Mapping[str, Recipe] = {module.RECIPE.name: module.RECIPE for module in _MODULES}
