"""Checkpoints of the training state and the data position, written by Orbax in the background.

The only module that knows Orbax. Kept are the latest checkpoints, to resume from, the one with the least validation
loss, which the base model and the synthesizer are taken from, and every so many steps one for good.
"""

import copy
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from sbp_jax.errors import SbpError
from sbp_jax.model.parameters import Parameters
from sbp_jax.training.step import State

VALIDATION = "validation"
# What Orbax raises for files that are not what it wrote. A disk that cannot be read for now is another matter.
DAMAGE = (ValueError, KeyError, TypeError, FileNotFoundError, NotADirectoryError)


class Checkpoints:
    """The checkpoints of one run, in one folder that all hosts share."""

    def __init__(self, folder: epath.Path, keep_last: int = 1, keep_every: int | None = None):
        self.folder = folder
        best = checkpoint_managers.BestN(
            get_metric_fn=_validation, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        policies: list[Any] = [checkpoint_managers.LatestN(keep_last), best]
        if keep_every is not None:
            policies.append(_Multiples(keep_every))
        options = ocp.CheckpointManagerOptions(
            best_fn=_validation,
            best_mode="min",
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        try:  # it reads the metrics of every checkpoint there is
            self._manager = ocp.CheckpointManager(folder, options=options)
        except DAMAGE as error:
            raise self._damaged(None, error) from error

    def save(self, step: int, state: State, position: dict[str, Any], validation: float | None) -> None:
        """Saves after `step` steps; returns before the files are written."""
        arguments = ocp.args.Composite(
            parameters=ocp.args.StandardSave(state.parameters),
            rest=ocp.args.StandardSave(_rest(state)),
            position=ocp.args.JsonSave(copy.deepcopy(position)),  # read in the background, while the caller goes on
        )
        metrics = None if validation is None else {VALIDATION: validation}
        self._manager.save(step, args=arguments, metrics=metrics)

    @property
    def latest(self) -> int | None:
        """Steps done at the latest whole checkpoint."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float]:
        """Step and validation loss of the best checkpoint, the earlier one of equals."""
        self._manager.wait_until_finished()
        losses = {step: self._metrics(step) for step in sorted(self._manager.all_steps())}
        measured = {step: metrics[VALIDATION] for step, metrics in losses.items() if metrics}
        best = min(measured, key=lambda step: measured[step])
        return best, measured[best]

    def restore(self, step: int, target: State) -> tuple[State, dict[str, Any]]:
        """The state and data position after `step` steps, placed as `target` (abstract) says, on any mesh.

        Raises:
          SbpError: the checkpoint is damaged or holds arrays of other shapes.
        """
        restored = self._restore(
            step,
            parameters=ocp.args.StandardRestore(target.parameters),
            rest=ocp.args.StandardRestore(_rest(target)),
            position=ocp.args.JsonRestore(),
        )
        return State(parameters=restored["parameters"], **restored["rest"]), restored["position"]

    def restore_parameters(self, step: int, target: Parameters) -> Parameters:
        """The parameters alone, for which the optimizer's state need not be in memory."""
        return self._restore(step, parameters=ocp.args.StandardRestore(target))["parameters"]

    def _restore(self, step: int, **arguments: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**arguments))
        except DAMAGE as error:
            self._manager.close()
            raise self._damaged(step, error) from error

    def _metrics(self, step: int) -> dict[str, float] | None:
        try:
            return self._manager.metrics(step)
        except DAMAGE as error:
            raise self._damaged(step, error) from error

    def _damaged(self, step: int | None, error: Exception) -> SbpError:
        cause = str(error).splitlines()[0].partition("[")[0][:200]
        where = f"the checkpoint {self.folder / str(step)}" if step is not None else f"a checkpoint in {self.folder}"
        whole = [int(path.name) for path in self.folder.glob("*") if path.name.isdigit() and path.name != str(step)]
        remedy = f"delete {self.folder.parent} to start this run over"
        if step is not None and whole:
            remedy = f"delete that folder to go on from step {max(whole)}, or {remedy.removeprefix('delete ')}"
        return SbpError(f"{where} is damaged or of another model; {remedy} ({cause.strip()})")

    def close(self) -> None:
        """Waits until everything saved is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


class _Multiples(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoints after whole multiples of a number of steps."""

    def __init__(self, every: int):
        self._every = every

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        return [info.step % self._every == 0 for info in checkpoints]


def _rest(state: State) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "parameters"}


def _validation(metrics: dict[str, float]) -> float:
    return metrics[VALIDATION]
