"""The experiment as a graph of named stage instances: what there is to make, from what, and what is already made."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import filelock
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, find
from sbp_jax.artifacts.artifact import count_rows, finished_files, read_json, report_failure, wait_for
from sbp_jax.artifacts.fingerprint import fingerprint
from sbp_jax.config import Experiment
from sbp_jax.errors import SbpError, Stopped
from sbp_jax.experiments import to_json
from sbp_jax.graph import graph
from sbp_jax.nodes import Node
from sbp_jax.parallel import hosts
from sbp_jax.training.interruption import all_asked_to_stop

# The fields that ask for stages which few experiments have.
ASKED_FOR = {
    "judge": "quality.judge.url",
    "texts": "evaluation.texts",
    "copies": "evaluation.texts",
    "ask": "evaluation.tasks",
}


@dataclass(frozen=True)
class Status:
    """How far one stage instance is.

    Attributes:
      state: done, partial or missing.
      rows: rows of the finished shards, or steps of a finished training run.
      seconds: that the attempt which finished it took.
    """

    name: str
    state: str
    rows: int
    seconds: float
    path: epath.Path


class Pipeline:
    """An experiment in a work folder.

    Attributes:
      workdir: holds `artifacts/<instance>/<key>/`, and `experiments/<name>.json` for every experiment run there.
      nodes: the stage instances by name, each after its inputs.
    """

    def __init__(self, experiment: Experiment, workdir: str):
        self.experiment = experiment
        self.workdir = epath.Path(workdir)
        self.nodes = graph(experiment)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """The recipe of every stage instance; needs the input files, but nothing made from them."""
        memory = self.workdir / "fingerprints.json"
        recipes: dict[str, Recipe] = {}
        for node in self.nodes.values():
            config = {name: _recipe_value(value) for name, value in node.config.items()}
            if node.files is not None:
                config["files"] = fingerprint(node.files(), memory)
            inputs = {role: recipes[name].key for role, name in node.inputs.items()}
            recipes[node.name] = Recipe(node.stage, node.version, config, inputs)
        return recipes

    def path(self, name: str) -> epath.Path:
        return self.workdir / "artifacts" / name / self.recipes[name].key

    def artifact(self, name: str) -> Artifact | None:
        """The artifact of a stage instance, None until it is complete."""
        return find(self.path(name), self.recipes[name].key)

    def status(self) -> list[Status]:
        result = []
        for name in self.nodes:
            artifact, path = self.artifact(name), self.path(name)
            if artifact is not None:
                result.append(Status(name, "done", artifact.rows, artifact.seconds, path))
            elif path.exists():
                result.append(Status(name, "partial", count_rows(finished_files(path)), 0.0, path))
            else:
                result.append(Status(name, "missing", 0, 0.0, path))
        return result

    def run(
        self,
        report: Callable[[str], None],
        until: str | None = None,
        only: str | None = None,
        instance: str | None = None,
    ) -> None:
        """Makes every artifact that is not complete, in order.

        On several hosts every process calls this, and so do the tasks of an array. All take part in the stages whose
        shards they divide, hosts also in those that are one program on all devices; the first makes the other artifacts
        while the rest wait for them in the shared work folder.

        Args:
          report: receives one line for each stage instance made.
          until: name of a stage or instance after which to stop.
          only: name of the one stage or instance to run.
          instance: name of the one instance to make, with all that it is made from. A stage may have the same name.

        Raises:
          SbpError: there is no such stage, an input of `only` is not complete, or another run has the work folder.
        """
        needed = None if instance is None else self._ancestors(instance)
        names = self._select(until, only) if needed is None else [name for name in self.nodes if name in needed]
        with self._lock():
            self._agree(report)
            self._record()
            for name in names:
                if all_asked_to_stop():
                    raise Stopped(f"the run was asked to stop and does so before {name}")
                made = self.artifact(name)
                if hosts.first_says(made is None):
                    report(f"{name} ...")
                    made = self._make(self.nodes[name])
                    report(f"{name}: {_summary(made)} in {made.seconds:.1f} s")
                elif only and made is not None:
                    report(f"{name}: already done, {_summary(made)}")

    def unused(self) -> list[epath.Path]:
        """Artifacts that neither this experiment nor the last run under any name in the work folder uses."""
        used = {(name, recipe.key) for name, recipe in self.recipes.items()}
        for file in (self.workdir / "experiments").glob("*.json"):
            record = read_json(file)
            if not isinstance(record, dict) or "keys" not in record:
                raise SbpError(
                    f"{file} is damaged, so what it uses is not known; run that experiment again, or delete the file"
                )
            used |= set(record["keys"].items())
        folders = sorted((self.workdir / "artifacts").glob("*/*"))
        return [path for path in folders if (path.parent.name, path.name) not in used]

    def remove(self, paths: list[epath.Path]) -> None:
        with self._lock():
            for path in paths:
                path.rmtree()

    def _agree(self, report: Callable[[str], None]) -> None:
        """Raises `SbpError` where another host would make other artifacts, which this one would wait for in vain.

        A task of an array waits until the first has begun with the same ones.
        """
        keys = json.dumps({name: recipe.key for name, recipe in self.recipes.items()})
        if not hosts.all_say(int(hashlib.sha256(keys.encode()).hexdigest()[:7], 16)):
            raise SbpError(
                "the hosts do not have the same experiment: give all of them the same config, --set and corpus files"
            )
        if hosts.is_first() or hosts.several():
            return
        waiting = 0
        while not isinstance(record := read_json(self._record_file()), dict) or record.get("keys") != json.loads(keys):
            if waiting % 60 == 0:
                report(f"waiting for task 0 to begin with this experiment in {self.workdir}; has it the same config?")
            waiting += 1
            time.sleep(1.0)

    def _select(self, until: str | None, only: str | None) -> list[str]:
        names = list(self.nodes)
        wanted = (until or only or "").replace("_", "-")
        if not wanted:
            return names
        exact = until or only  # a name may have underscores of its own, such as a task's
        chosen = [name for name in names if name == exact or self.nodes[name].stage.replace("_", "-") == wanted]
        if wanted in ASKED_FOR and not chosen:
            raise SbpError(f"this experiment has no stage {wanted}; it has one where {ASKED_FOR[wanted]} is set")
        if not chosen:
            stages = sorted({node.stage.replace("_", "-") for node in self.nodes.values()})
            raise SbpError(
                f"there is no stage {until or only}; stages: {', '.join(stages)}; instances: {', '.join(names)}"
            )
        if until:
            needed = set()
            for name in chosen:
                needed |= self._ancestors(name)
            return [name for name in names if name in needed]
        return chosen

    def _ancestors(self, name: str) -> set[str]:
        found = {name}
        node = self.nodes[name]
        for parent in (*node.inputs.values(), *node.watched.values()):
            found |= self._ancestors(parent)
        return found

    def _make(self, node: Node) -> Artifact:
        takes_part = hosts.is_first() or node.divided or (node.together and hosts.several())
        if not takes_part:
            return wait_for(self.path(node.name), self.recipes[node.name].key)
        inputs = {}
        for role, name in (*node.inputs.items(), *node.watched.items()):
            artifact = self.artifact(name)
            if artifact is None:
                raise SbpError(
                    f"{node.name} needs {name}, which is not complete; run `sbp run ... --until {node.name}`"
                )
            inputs[role] = artifact
        execution = self.experiment.execution
        how = dataclasses.asdict(execution)
        output = Output(self.path(node.name), self.recipes[node.name], node.name, how, hosts.is_first())
        try:
            return node.run(output, **inputs, **node.config, **node.aside, execution=execution)
        except Exception as error:
            process, processes = hosts.share()
            if processes > 1 and not hosts.several():  # hosts that have found one another end together anyway
                report_failure(output.path, process, str(error))
            raise

    def _record(self) -> None:
        """Writes which artifacts this experiment uses, so that `clean` leaves them."""
        if not hosts.is_first():
            return
        file = self._record_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        keys = {name: recipe.key for name, recipe in self.recipes.items()}
        record = json.loads(json.dumps({"experiment": to_json(self.experiment), "keys": keys}))
        if read_json(file) != record:
            file.write_text(json.dumps(record, indent=1))

    def _record_file(self) -> epath.Path:
        return self.workdir / "experiments" / f"{self.experiment.name}.json"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        if not hosts.is_first():
            yield
            return
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SbpError(
                f"the work folder {self.workdir} cannot be made ({error.strerror}); choose another"
            ) from error
        lock = filelock.FileLock(self.workdir / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise SbpError(
                f"another run is working in {self.workdir}; wait for it, or give this one its own --workdir"
            ) from None
        try:
            yield
        finally:
            lock.release()


def _recipe_value(value: Any) -> Any:
    """A config value as it stands in a recipe: without the fields that cannot change the result."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {entry: getattr(value, entry.name) for entry in dataclasses.fields(value)}
        return {
            entry.name: _recipe_value(own)
            for entry, own in found.items()
            if entry.metadata.get("recipe", True) and not (own is None and entry.metadata.get("where_set"))
        }
    return [_recipe_value(entry) for entry in value] if isinstance(value, tuple) else value


def _summary(artifact: Artifact) -> str:
    """The most telling counts of an artifact, in one line."""
    telling = (
        "documents",
        "tokens",
        "vocab_size",
        "texts_changed",
        "texts_sampled",
        "candidates",
        "accepted",
        "pairs",
        "full_rows",
        "steps",
        "best_validation",
        "nats_per_token",
        "items",
    )
    counts = [f"{_number(artifact.stats[name])} {name}" for name in telling if artifact.stats.get(name)]
    return ", ".join(counts) or (f"{artifact.rows:,} rows" if artifact.rows else "written")


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
