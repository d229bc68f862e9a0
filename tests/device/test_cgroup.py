"""The limits of control groups, on files as Linux shows them."""

from pathlib import Path

import pytest

from biencoder.device import cpu
from biencoder.device.cgroup import cgroup_limits

GIB = 1 << 30


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def limits(root: Path, own: str) -> list[int]:
    (root / "own").write_text(own)
    return cgroup_limits(root, root / "own")


def test_version_2_counts_a_group_and_those_around_it(tmp_path: Path) -> None:
    write(tmp_path / "batch", memory__max=str(8 * GIB))
    write(tmp_path / "batch" / "job", memory__max="max", memory__high=str(6 * GIB))
    write(tmp_path / "other", memory__max=str(1 * GIB))
    assert sorted(limits(tmp_path, "0::/batch/job\n")) == [6 * GIB, 8 * GIB]


def test_version_2_in_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    write(tmp_path, memory__max=str(2 * GIB))
    assert limits(tmp_path, "0::/\n") == [2 * GIB]
    assert limits(tmp_path, "0::/../elsewhere\n") == [2 * GIB]


def test_version_1_counts_the_tree_of_memory_alone(tmp_path: Path) -> None:
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712")
    write(tmp_path / "memory" / "slurm" / "job", memory__limit_in_bytes=str(4 * GIB))
    write(tmp_path / "cpu" / "slurm" / "job", memory__limit_in_bytes="1")
    own = "5:cpu,cpuacct:/slurm/job\n4:hugetlb,memory:/slurm/job\n0::/\n"
    assert sorted(limits(tmp_path, own)) == [4 * GIB, 9223372036854771712]


def test_version_1_in_a_container_that_names_its_group_as_the_host_does(tmp_path: Path) -> None:
    write(tmp_path / "memory", memory__limit_in_bytes=str(3 * GIB))
    assert limits(tmp_path, "4:memory:/docker/1f2e3d\n") == [3 * GIB]


@pytest.mark.parametrize("own", ["", "nonsense", "0::/batch"])
def test_no_limits_are_none(tmp_path: Path, own: str) -> None:
    assert limits(tmp_path, own) == []
    assert cgroup_limits(tmp_path, tmp_path / "missing") == []


def test_the_least_of_machine_and_groups_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cgroup_limits", list)
    machine = cpu.machine_memory()
    assert 10**8 < machine < 10**14
    monkeypatch.setattr(cpu, "cgroup_limits", lambda: [machine // 2, machine * 2])
    assert cpu.machine_memory() == machine // 2
