"""Files of an artifact that are made shard by shard, wherever there is room: see `parallel/executor.py`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sbp_jax.artifacts.artifact import File, Output
from sbp_jax.config import Execution
from sbp_jax.parallel import executor, hosts
from sbp_jax.progress import progress

Work = Callable[[Output, int], None]


def make(
    output: Output,
    names: Sequence[Sequence[str]],
    work: Work,
    execution: Execution,
    sizes: Sequence[int],
    divided: bool = True,
) -> None:
    """Makes the files of all shards that an earlier run did not finish.

    Several hosts or tasks of an array divide the shards among themselves; the first has all files in its output once it
    calls `finish`.

    Args:
      names: the files of each shard.
      work: writes all of them, given an output and the number of a shard; picklable.
      sizes: documents of each shard, for the progress.
      divided: whether the stage is run by all hosts and tasks; otherwise this process makes all shards.
    """
    index, count = hosts.share() if divided else (0, 1)
    own = range(index, len(names), count)
    output.divide([name for number in own for name in names[number]], [name for shard in names for name in shard])
    with progress(output.label, sum(sizes[number] for number in own), "documents") as counter:
        todo = []
        for number in own:
            if all(map(output.has, names[number])):
                counter.skip(sizes[number])
            else:
                todo.append(_Shard(number, tuple(names[number])))
        for shard, files in executor.carry_out(execution, output.label, _Task(output.elsewhere(), work), todo):
            output.take(files)
            counter.advance(sizes[shard.number])


@dataclass(frozen=True)
class _Shard:
    number: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return self.names[-1]


@dataclass(frozen=True)
class _Task:
    """Writes the files of one shard."""

    output: Output
    work: Work

    def __call__(self, shard: _Shard) -> tuple[_Shard, list[File]]:
        output = self.output.elsewhere()
        self.work(output, shard.number)
        return shard, [output.entry(name) for name in shard.names]
