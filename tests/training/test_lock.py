"""Tests of the lock of a directory."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zoo.training import lock
from zoo.training.lock import LOCK_FILE, DirectoryLock

pytestmark = pytest.mark.once

# The module alone, since importing `zoo` takes seconds.
HOLD = f"""
import pathlib, runpy, sys
lock = runpy.run_path({lock.__file__!r})["DirectoryLock"](pathlib.Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_lock_names_the_process_that_holds_it_and_ends_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        mine = DirectoryLock(tmp_path)
        with pytest.raises(BlockingIOError, match=rf"in use by process {holder.pid} on ."):
            mine.acquire()
        assert not mine.is_held
        holder.kill()
    assert sorted(os.listdir(tmp_path)) == [".lock", ".lock-holder"]
    mine.acquire()
    assert json.loads((tmp_path / ".lock-holder").read_text())["process"] == os.getpid()
    mine.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00"])
def test_lock_refuses_where_the_holder_has_yet_to_name_itself(tmp_path: Path, content: str) -> None:
    first = DirectoryLock(tmp_path)
    first.acquire()
    (tmp_path / ".lock-holder").write_text(content)
    with pytest.raises(BlockingIOError, match="in use by another process"):
        DirectoryLock(tmp_path).acquire()
    first.release()


def test_lock_is_taken_on_a_full_disk(tmp_path: Path) -> None:
    """Where the holder cannot name itself; what is written next fails by its name."""
    lock = DirectoryLock(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        lock.acquire()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(BlockingIOError, match="in use by another process"):
        DirectoryLock(tmp_path).acquire()
    lock.release()
    assert os.listdir(tmp_path) == []


def test_lock_opens_its_file_once_as_windows_demands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There no second handle reads or writes a locked file, nor can it be removed."""
    lock = DirectoryLock(tmp_path)

    def refuse_locked(method: str) -> None:
        original = getattr(Path, method)

        def call(path: Path, *arguments: Any, **options: Any) -> Any:
            if path.name == LOCK_FILE and lock.is_held:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *arguments, **options)

        monkeypatch.setattr(Path, method, call)

    for method in ("open", "read_text", "write_text", "unlink"):
        refuse_locked(method)
    lock.acquire()
    with pytest.raises(BlockingIOError, match=rf"in use by process {os.getpid()} on ."):
        DirectoryLock(tmp_path).acquire()
    lock.release()
    assert os.listdir(tmp_path) == [LOCK_FILE]
    lock.acquire()
    lock.release()


def test_lock_release_leaves_the_lock_of_a_directory_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    first, second = DirectoryLock(folder), DirectoryLock(folder)
    first.acquire()
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    second.acquire()
    with pytest.raises(FileNotFoundError, match="was moved, removed or replaced"):
        first.check_directory()
    first.release()
    with pytest.raises(BlockingIOError):
        DirectoryLock(folder).acquire()
    second.release()
