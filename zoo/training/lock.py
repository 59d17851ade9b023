"""Lock of a directory that one process at a time writes to."""

import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

import filelock

LOCK_FILE = ".lock"


class DirectoryLock:
    """Lock of a directory against other processes that write to it; readers do not need it.

    The operating system locks the file `.lock` of the directory, so that the lock ends with its
    process, however the process ends. The file names the process, for the message to others.

    Args:
        folder: The directory.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        # `fit` may run in another thread than the one that opened the directory.
        self._lock = filelock.FileLock(folder / LOCK_FILE, timeout=0, thread_local=False)
        self._identity: os.stat_result | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return bool(self._lock.is_locked)

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            BlockingIOError: If another process holds it; the text names the process and its host.
        """
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"`run_dir` must be written to by one process at a time. Received: {self._folder}, "
                f"in use by {self._holder()}. Wait until that ends, or give another `--run-dir`",
            ) from error
        holder = {"process": os.getpid(), "host": socket.gethostname()}
        (self._folder / LOCK_FILE).write_text(json.dumps(holder))
        self._identity = os.stat(self._folder)

    def release(self) -> None:
        """Gives the lock back, if this object holds it."""
        if self.is_held:
            with suppress(OSError):  # the file is another's, if the directory was replaced
                self.check_directory()
                (self._folder / LOCK_FILE).unlink()
        self._lock.release()

    def check_directory(self) -> None:
        """Checks that the directory is still the one that was locked.

        Raises:
            FileNotFoundError: If the directory was removed, or replaced by another one.
        """
        try:
            assert self._identity is not None
            is_same = os.path.samestat(os.stat(self._folder), self._identity)
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise FileNotFoundError(
                errno.ENOENT,
                f"`run_dir` must stay in place until the run ends. Received: {self._folder}, which "
                "was moved, removed or replaced. Put it back to go on after its last checkpoint; "
                "without it, the same command begins anew",
            )

    def _holder(self) -> str:
        try:
            holder = json.loads((self._folder / LOCK_FILE).read_text())
            return f"process {holder['process']} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has yet to name itself
            return "another process"
