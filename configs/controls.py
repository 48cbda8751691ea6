"""All nine standard arms at the size of the quickstart: what each of them needs, on two cores.

As with the quickstart, the scale is far below what could tell one arm from another. It shows what the arms are, and
that all of them run through the same stages. A quarter of an hour.
"""

from dataclasses import replace

import quickstart

from sbp_jax.arms import standard_arms
from sbp_jax.config import Experiment
from sbp_jax.experiments import shrink


def get_config() -> Experiment:
    experiment = quickstart.get_config()
    return replace(
        experiment,
        name="controls",
        arms=standard_arms(0.25),
        note=experiment.note + " One seed: differences between arms may all be luck.",
    )


def tiny() -> Experiment:
    return shrink(get_config(), quickstart.WIKIPEDIA)
