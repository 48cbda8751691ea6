"""Finished runs by where they lie: the summary of each, its experiment, and the artifacts behind it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from etils import epath

from sbp_jax.artifacts import Artifact, find
from sbp_jax.artifacts.artifact import MANIFEST, read_json
from sbp_jax.errors import SbpError

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
      name: of the experiment, with a number where several have it.
      place: as it was asked for.
      experiment: its fields as JSON values; None where the summary alone is there.
      keys: of the artifacts that its report was made from, by role.
      artifacts: the folder that holds them.
    """

    name: str
    place: str
    summary: dict[str, Any]
    experiment: dict[str, Any] | None
    keys: dict[str, str]
    artifacts: epath.Path | None

    def artifact(self, role: str) -> Artifact | None:
        """The artifact that plays a role in the report; None where it is gone."""
        key = self.keys.get(role)
        if key is None or self.artifacts is None:
            return None
        for folder in sorted(self.artifacts.glob(f"*/{key}")):
            found = find(folder, key)
            if found is not None:
                return found
        return None


def open_all(places: Sequence[str]) -> list[Run]:
    """Opens runs and tells apart those of one name."""
    runs = [open_run(place) for place in places]
    names = [run.name for run in runs]
    numbers = [names[:place].count(name) + 1 for place, name in enumerate(names)]
    return [
        run if names.count(run.name) == 1 else replace(run, name=f"{run.name} ({number})")
        for run, number in zip(runs, numbers, strict=True)
    ]


def open_run(place: str) -> Run:
    """A run by its work folder, its report's folder, its `summary.json`, or `experiments/NAME.json` of a work folder.

    Raises:
      SbpError: there is no report, there are several, or an earlier version made it.
    """
    path = Path(place).expanduser()
    if path.is_dir() and (path / "artifacts").is_dir():
        path = _of_workdir(path)
    elif path.parent.name == "experiments" and path.suffix == ".json":
        path = _of_record(path)
    file = path / SUMMARY if path.is_dir() else path
    if not file.is_file():
        raise SbpError(
            f"{place} holds no report; give a work folder of a finished run, the folder of its report, or {SUMMARY}"
        )
    summary = read_json(epath.Path(file))
    if not isinstance(summary, dict) or "arms" not in summary:
        raise SbpError(f"{file} is no summary of a run; give a work folder, the folder of a report, or its {SUMMARY}")
    if "comparisons" not in summary:
        raise SbpError(f"{file} was written by an earlier version; run `sbp report` on its config to write it anew")
    manifest = read_json(epath.Path(file.parent / MANIFEST))
    recipe = manifest["recipe"] if isinstance(manifest, dict) and "recipe" in manifest else None
    if recipe is None:
        return Run(summary["name"], place, summary, None, {}, None)
    folder = epath.Path(file.absolute().parent.parent.parent)
    return Run(summary["name"], place, summary, recipe["config"]["experiment"], recipe["inputs"], folder)


def _of_workdir(folder: Path) -> Path:
    """The folder of the one report of a work folder."""
    reports = {file: _report(file) for file in sorted((folder / "experiments").glob("*.json"))}
    done = {file: path for file, path in reports.items() if path is not None}
    if not done:
        raise SbpError(f"{folder} holds no finished report; run `sbp run CONFIG --workdir {folder}` to the end")
    if len(done) > 1:
        names = ", ".join(map(str, done))
        raise SbpError(f"{folder} holds the reports of several experiments; give one of {names}")
    return next(iter(done.values()))


def _of_record(file: Path) -> Path:
    path = _report(file)
    if path is None:
        raise SbpError(f"the report of {file} is not complete; run `sbp run` on its config to the end")
    return path


def _report(file: Path) -> Path | None:
    """The folder of the finished report of an experiment by its record in the work folder."""
    try:
        key = json.loads(file.read_text())["keys"]["report"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SbpError(
            f"{file} is no record of an experiment; run that experiment again, or delete the file"
        ) from error
    path = file.parent.parent / "artifacts" / "report" / key
    return path if (path / MANIFEST).exists() else None
