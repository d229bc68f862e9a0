"""The memory of a process as Linux shows it."""

from pathlib import Path


def memory(name: str, process: int | str = "self") -> int:
    """Bytes of a figure in a process's status.

    Args:
        name: ``VmHWM`` is the peak, ``VmRSS`` what it has now, ``RssAnon`` what of that no file holds.
        process: its number.
    """
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def forget_peak(process: int | str = "self") -> None:
    """Let ``VmHWM`` begin again."""
    Path(f"/proc/{process}/clear_refs").write_text("5", encoding="utf-8")
