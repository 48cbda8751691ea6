"""What the whole run costs at a setting, and whether it writes enough."""

import math
from collections.abc import Sequence
from typing import Any

from sbp_jax.calibration.writing import Speed, new_tokens
from sbp_jax.data.budget import Synthetic
from sbp_jax.generation.requests import Completion
from sbp_jax.scoring.ratio import Estimate

STEP = 0.1  # of the oversampling that is advised


def cost(
    completions: Sequence[Completion], accepted: Estimate, budget: Synthetic, oversample: float, speed: Speed
) -> dict[str, Any]:
    """The run as it is configured, and the oversampling that leaves as many tokens as the arms need.

    Args:
      completions: of one setting.
      accepted: tokens that the filters leave of a document.
      budget: what has to be written.
      oversample: `synthesis.oversample`, which the budget has.
    """
    mean = sum(map(new_tokens, completions)) / len(completions)
    prompt = sum(len(completion.request.prompt) for completion in completions) / len(completions)
    bounds = [_oversample(value, budget) for value in (accepted.value, accepted.high, accepted.low)]
    advised = None if bounds[2] is None else math.ceil(bounds[2] / STEP - 1e-9) * STEP
    return {
        "mean_prompt_tokens": prompt,
        "accepted_tokens_a_document": [accepted.value, accepted.low, accepted.high],
        "configured": {"oversample": oversample} | _run(budget.documents, mean, prompt, accepted, speed),
        "oversample_needed": bounds,
        "suffices": budget.documents * accepted.value >= budget.tokens,
        "advised": None
        if advised is None
        else {"oversample": round(advised, 6)}
        | _run(math.ceil(budget.tokens * advised / budget.length), mean, prompt, accepted, speed),
    }


def _oversample(accepted: float | None, budget: Synthetic) -> float | None:
    """What makes the tokens that are needed of so many accepted ones a document; None where nothing does."""
    return budget.length / accepted if accepted else None


def _run(documents: int, mean: float, prompt: float, accepted: Estimate, speed: Speed) -> dict[str, Any]:
    return {
        "documents": documents,
        "new_tokens": round(documents * mean),
        "prompt_tokens": round(documents * prompt),
        "accepted_tokens": round(documents * accepted.value),
        "hours": documents * mean / speed.rate / 3600,
    }
