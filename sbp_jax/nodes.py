"""Stage instances, and what they are gathered in while a graph is built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType, ModuleType
from typing import Any

from etils import epath

from sbp_jax.arms import TrainedArm, in_order, trained_arms
from sbp_jax.artifacts import Artifact
from sbp_jax.config import Experiment
from sbp_jax.errors import SbpError
from sbp_jax.stages import ask, embed, neighbors, score, screen, synthesize, tokenize, train, tune

TOGETHER = (train, tune, score, ask, neighbors)  # stages that are one program on the devices of all hosts
DIVIDED = (tokenize, screen, embed, synthesize)  # stages whose shards the hosts, or the tasks of an array, divide


@dataclass(frozen=True)
class Node:
    """One stage instance.

    Attributes:
      name: unique in the experiment, such as "train-sbp-0".
      stage: name of the stage.
      version: version of its rules.
      run: the stage's function.
      inputs: name of the instance that makes each input artifact, by the role it plays.
      config: the stage's other arguments, all part of the recipe.
      files: lists the user's files it reads, whose content is part of the recipe.
      together: whether all hosts run it, as one program on all devices.
      divided: whether all processes run it, each on some of the shards.
      watched: further inputs, by role, and `aside` further arguments that cannot change what it makes, only what is
        told on the way; no part of the recipe.
    """

    name: str
    stage: str
    version: int
    run: Callable[..., Artifact]
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    files: Callable[[], list[epath.Path]] | None = None
    together: bool = False
    divided: bool = False
    watched: Mapping[str, str] = field(default_factory=dict)
    aside: Mapping[str, Any] = field(default_factory=dict)


class Nodes(dict[str, Node]):
    """The stage instances of an experiment so far, each after its inputs.

    Attributes:
      arms: all that are trained, each behind those it asks for.
      settings: of the tokenizer; where it is the user's own, what is to be trained is of no account.
    """

    def __init__(self, experiment: Experiment):
        super().__init__()
        self.experiment = experiment
        self.arms: list[TrainedArm] = in_order(trained_arms(experiment))
        own = experiment.tokenizer.path is not None
        self.settings = replace(experiment.tokenizer, vocab_size=0) if own else experiment.tokenizer

    def add(
        self,
        name: str,
        stage: ModuleType,
        inputs: Mapping[str, str],
        config: Mapping[str, Any],
        files: Callable[[], list[epath.Path]] | None = None,
        watched: Mapping[str, str] = MappingProxyType({}),
        aside: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Adds an instance and gives its name back.

        Raises:
          SbpError: there is one of that name.
        """
        if name in self:
            raise SbpError(f"two stage instances would be named {name}; give an arm or a text set another name")
        kind = stage.__name__.rpartition(".")[2]
        runners = stage in TOGETHER, stage in DIVIDED
        self[name] = Node(*(name, kind, stage.VERSION, stage.run, inputs, config, files, *runners, watched, aside))
        return name


def same(*names: str) -> dict[str, str]:
    """Inputs whose role is the name of their instance."""
    return {name: name for name in names}
