"""SBP at the paper's second scale: 50B unique tokens, 1T training tokens, a 3B model (arXiv 2509.15248)."""

from dataclasses import replace

import paper_200b_3b as smaller
from quickstart import WIKIPEDIA

from sbp_jax.config import Experiment
from sbp_jax.experiments import shrink


def get_config() -> Experiment:
    experiment = smaller.get_config()
    return replace(
        experiment,
        name="paper_1t_3b",
        splits=smaller.splits(50e9, 482e9),  # paper: only 482B unique tokens existed for the oracle
        training=replace(experiment.training, tokens=1_000_000_000_000),  # paper
        arms=smaller.arms(0.125),  # paper: 125B of 1T tokens
    )


def tiny() -> Experiment:
    return shrink(get_config(), WIKIPEDIA)
