"""Checkpoints of the training state and the data position, written by Orbax in the background.

The only module that knows Orbax. Kept are the latest checkpoint, to resume from, and the one with the least
validation loss, which the base model and the synthesizer are taken from.
"""

from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from sbp_jax.errors import SbpError
from sbp_jax.training.step import State

VALIDATION = "validation"
DAMAGE = (ValueError, KeyError, TypeError, OSError)  # what Orbax raises for files that are not what it wrote


class Checkpoints:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: epath.Path):
        self.folder = folder
        keep = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(1),
                checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[VALIDATION], reverse=True, n=1),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda metrics: metrics[VALIDATION],
            best_mode="min",
            preservation_policy=keep,
            cleanup_tmp_directories=True,
        )
        try:  # it reads the metrics of every checkpoint there is
            self._manager = ocp.CheckpointManager(folder, options=options)
        except DAMAGE as error:
            raise self._damaged(None, error) from error

    def save(self, step: int, state: State, position: dict[str, Any], validation: float) -> None:
        """Saves after `step` steps; returns before the files are written."""
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        self._manager.save(step, args=arguments, metrics={VALIDATION: validation})

    @property
    def latest(self) -> int | None:
        """Steps done at the latest whole checkpoint."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float]:
        """Step and validation loss of the best checkpoint, the earlier one of equals."""
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps())
        losses = {step: self._validation(step) for step in steps}
        best = min(steps, key=lambda step: losses[step])
        return best, losses[best]

    def restore(self, step: int, target: State) -> tuple[State, dict[str, Any]]:
        """The state and data position after `step` steps, placed as `target` (abstract) says.

        Raises:
          SbpError: the checkpoint is damaged or holds arrays of other shapes.
        """
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target), position=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=arguments)
        except DAMAGE as error:
            self._manager.close()
            raise self._damaged(step, error) from error
        return restored["state"], restored["position"]

    def _validation(self, step: int) -> float:
        try:
            return self._manager.metrics(step)[VALIDATION]
        except DAMAGE as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int | None, error: Exception) -> SbpError:
        cause = str(error).splitlines()[0].partition("[")[0][:200]
        where = f"the checkpoint {self.folder / str(step)}" if step is not None else f"a checkpoint in {self.folder}"
        return SbpError(
            f"{where} is damaged or of another model;"
            f" delete {self.folder.parent} to start this run over ({cause.strip()})"
        )

    def close(self) -> None:
        """Waits until everything saved is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
