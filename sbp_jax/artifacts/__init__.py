"""Artifacts: folders of checksummed files with a manifest that is written last."""

from sbp_jax.artifacts.artifact import Artifact, Output, find
from sbp_jax.artifacts.recipe import Recipe

__all__ = ["Artifact", "Output", "Recipe", "find"]
