"""Tests of the worker process when its parent process dies or stops."""

import os
import pickle
import select
import subprocess
import sys
import time
from typing import Any

import cloudpickle
import pytest

from zoo.parity import worker

pytestmark = pytest.mark.once

START_WORKER = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-P", sys.argv[1], "60"], stdin=subprocess.PIPE)
os.write(1, b"started")
time.sleep(60)
"""


def test_worker_ends_with_its_parent_while_it_imports() -> None:
    """The worker holds the writing end of a pipe, which the system closes when it ends."""
    reader, writer = os.pipe()
    parent = subprocess.Popen([sys.executable, "-c", START_WORKER, worker.__file__], stdout=writer)
    os.close(writer)
    assert os.read(reader, 100) == b"started"
    time.sleep(0.3)  # Python itself takes less, Keras more
    assert not select.select([reader], [], [], 0)[0]
    parent.kill()
    parent.wait()
    assert select.select([reader], [], [], 20)[0]
    assert os.read(reader, 100) == b""
    os.close(reader)


def run_worker(time_limit: float, task: Any = None) -> subprocess.CompletedProcess[bytes]:
    """Runs a worker until it ends, while this process waits and does not watch the time."""
    command = [sys.executable, "-P", worker.__file__, str(time_limit)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    if task is not None:
        pickle.dump((0.1, "float32", cloudpickle.dumps(task)), process.stdin)
        process.stdin.flush()
    process.wait()
    outputs = process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()  # type: ignore[union-attr]
    return subprocess.CompletedProcess(command, process.returncode, *outputs)


def test_worker_ends_by_itself_if_imports_exceed_the_time_limit() -> None:
    result = run_worker(1e-3)
    assert result.returncode == 1
    assert b"Timeout (0:00:01" in result.stderr
    assert not result.stdout


def test_worker_ends_by_itself_if_a_task_exceeds_the_time_limit() -> None:
    result = run_worker(60, lambda: time.sleep(50))
    assert result.returncode == 1
    assert b"Timeout (0:00:01" in result.stderr
    assert b"in _run_task" in result.stderr
    assert not result.stdout
