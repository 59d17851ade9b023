"""Tests of the launcher, with small programs as workers."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoo.training import distributed, launcher
from zoo.training.launcher import launch

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(os.name == "nt", reason="process groups of POSIX"),
]

HEADER = """
import os, signal, subprocess, sys, time
rank = int(os.environ["ZOO_RANK"])
def attempt(folder="."):
    open(f"attempt-{rank}", "a").write(".")
    return len(open(f"attempt-{rank}").read())
"""
SLEEP = "time.sleep(60)"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Launches Python programs, one a rank; returns the status and what the launcher has said."""
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    monkeypatch.setattr(launcher, "_print", lines.append)

    def run(*programs: str, **options: Any) -> tuple[int, str]:
        branches = [f"if rank == {rank}: {program}" for rank, program in enumerate(programs)]
        command = [sys.executable, "-c", "\n".join([HEADER, *branches])]
        status = launch(command, devices=len(programs), **options)
        return status, "\n".join(lines)

    return run


def assert_ends(process: int) -> None:
    """Checks that a process ends within seconds, or is a zombie that nobody has waited for."""
    status = Path(f"/proc/{process}/stat")
    for _ in range(200):
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {process} runs on")


def test_launch_starts_a_worker_for_each_device_and_shows_the_first(
    run: Callable[..., tuple[int, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    show = "print(*(os.environ['ZOO_' + n] for n in ('NUM_WORKERS', 'LOCAL_RANK', 'COORDINATOR')))"
    options = {"num_nodes": 2, "node_rank": 0, "coordinator": "a:2000"}
    assert run(show, "print('hidden')", **options) == (0, "")
    assert capfd.readouterr().out == "4 0 a:2000\n"


def test_launch_ends_all_workers_when_one_fails(run: Callable[..., tuple[int, str]]) -> None:
    child = "subprocess.Popen(['sleep', '60'], start_new_session=False)"
    start = time.monotonic()
    status, output = run(
        f"open('child', 'w').write(str({child}.pid)); {SLEEP}",
        "[time.sleep(0.01) for _ in range(1000) if not os.path.exists('child')]; "
        "print('first line'); sys.exit('why')",
    )
    assert time.monotonic() - start < 20
    assert status == 1
    lines = "\n    first line\n    why"
    assert output == f"error: Worker 1 of 2 has ended with status 1. Its last lines:{lines}"
    assert_ends(int(Path("child").read_text()))


def test_launch_starts_again_after_a_worker_was_killed(
    run: Callable[..., tuple[int, str]],
) -> None:
    assert run("attempt()", f"attempt() == 1 and {KILL}") == (
        0,
        "error: Worker 1 of 2 was killed by SIGKILL\n"
        "Starting again from the last checkpoint (1 of 3)",
    )
    assert Path("attempt-1").read_text() == ".."


def test_launch_gives_up_after_max_restarts(run: Callable[..., tuple[int, str]]) -> None:
    status, output = run(f"attempt(); {KILL}", max_restarts=2)
    assert status == 1
    assert "error: The workers have failed 3 times, and `max_restarts` is 2. The same" in output
    assert Path("attempt-0").read_text() == "..."


def test_launch_names_the_worker_that_failed_first(run: Callable[..., tuple[int, str]]) -> None:
    """The others lose their connection, and may end before it."""
    lost = f"sys.exit({launcher.LOST})"
    status, output = run(lost, "time.sleep(0.5); sys.exit('the cause')", lost)
    assert status == 1
    assert "Worker 1 of 3 has ended with status 1. Its last lines:\n    the cause" in output


def test_launch_passes_ctrl_c_on_to_the_first_worker(run: Callable[..., tuple[int, str]]) -> None:
    def interrupt() -> None:
        while not Path("ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    stop = "lambda *_: (open('saved', 'w'), sys.exit(130))"
    status, output = run(
        f"signal.signal(signal.SIGINT, {stop}); open('ready', 'w'); {SLEEP}",
        f"signal.signal(signal.SIGINT, lambda *_: open('wrong', 'w')); {SLEEP}",
    )
    thread.join()
    assert (status, output) == (130, "")
    assert Path("saved").exists()
    assert not Path("wrong").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_workers_end_with_a_killed_launcher(tmp_path: Path) -> None:
    worker = f"""
import os, sys, time
import zoo_command
zoo_command.skip_extras_of_keras()
from zoo.training import distributed
with distributed():
    open({str(tmp_path / "worker")!r}, "w").write(str(os.getpid()))
    time.sleep(60)
"""
    start = f"from zoo.training.launcher import launch; launch({[sys.executable, '-c', worker]}, 1)"
    process = subprocess.Popen([sys.executable, "-c", start])
    path = tmp_path / "worker"
    while not path.exists() or not path.read_text():
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.wait()
    assert_ends(int(path.read_text()))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"devices": 0}, "`devices` must be a whole number of at least 1. Received: devices=0"),
        ({"devices": 1, "num_nodes": 2, "node_rank": 2}, r"`node_rank` must be below `num_nodes`"),
        ({"devices": 1, "num_nodes": 2}, "`coordinator` must be an address HOST:PORT of machine 0"),
        ({"devices": 1, "coordinator": "a"}, "`coordinator` must be an address HOST:PORT with a p"),
    ],
)
def test_launch_rejects_invalid_arguments(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        launch(["false"], **arguments)


def test_distributed_does_nothing_for_one_device() -> None:
    with distributed() as cluster:
        assert cluster is None


def test_distributed_rejects_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(ValueError, match=r"`devices` above 1 needs a script.* devices=2 in an"):
        distributed(2).__enter__()
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "2000")
    with pytest.raises(ValueError, match="times `num_nodes` must be 4, the number of workers"):
        distributed(2).__enter__()
