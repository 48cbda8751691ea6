"""SBP at the paper's third scale: 50B unique tokens, 1T training tokens, a 6B model (arXiv 2509.15248)."""

from dataclasses import replace

import paper_1t_3b as smaller
from paper_200b_3b import arms
from quickstart import WIKIPEDIA

from sbp_jax.config import Experiment
from sbp_jax.experiments import shrink


def get_config() -> Experiment:
    experiment = smaller.get_config()
    return replace(
        experiment,
        name="paper_1t_6b",
        # Paper: 6B. The sizes are ours: the 3B shape, wider and deeper in the same proportions.
        model=replace(experiment.model, width=4096, layers=30, heads=32, kv_heads=8, head_dim=128, ffn=10_880),
        arms=arms(0.25),  # paper: 250B of 1T tokens
    )


def tiny() -> Experiment:
    return shrink(get_config(), WIKIPEDIA)
