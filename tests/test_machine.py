"""What the machine is asked for."""

from pathlib import Path

import psutil

from sbp_jax.parallel import machine


def test_memory_is_what_a_job_is_held_to(monkeypatch):
    """Half of a host's memory, in a job of a quarter, is an index that the system kills."""
    groups = {
        "/proc/self/cgroup": "0::/slurm/job_7/step\n",
        "/sys/fs/cgroup/slurm/job_7/step/memory.max": "max\n",
        "/sys/fs/cgroup/slurm/job_7/memory.max": "123456789\n",
        "/sys/fs/cgroup/memory.max": "999999999999999999\n",
    }

    def read_text(path: Path) -> str:
        if str(path) not in groups:
            raise FileNotFoundError(path)
        return groups[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert machine.memory() == 123456789
    groups["/proc/self/cgroup"] = "3:cpu,cpuacct:/job\n4:memory:/job\n"
    groups["/sys/fs/cgroup/memory/job/memory.limit_in_bytes"] = "4096\n"
    assert machine.memory() == 4096
    groups.clear()
    assert machine.memory() == psutil.virtual_memory().total
