"""Lock of a directory that one training at a time writes to."""

import errno
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

import filelock

LOCK_FILE = ".lock"
HOLDER_FILE = ".lock-holder"  # since Windows lets no second handle read or write a locked file


class DirectoryLock:
    """Lock of a directory against others that write to it; readers do not need it.

    The operating system locks the file `.lock` of the directory, so that the lock ends with its
    process, however the process ends. The file `.lock-holder` names the process, for the message
    to others.

    Args:
        folder: The directory.
        argument: Name of the argument `folder` in error messages.
        remedy: Text of the error messages that tells how to get another directory.
    """

    def __init__(
        self, folder: Path, argument: str = "run_dir", remedy: str = "give another `--run-dir`"
    ):
        self._folder = folder
        self._argument = argument
        self._remedy = remedy
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
            BlockingIOError: If another process or thread holds it; the text names the process and
                its host.
        """
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"`{self._argument}` must be written to by one process at a time. Received: "
                f"{self._folder}, in use by {self._holder()}. Wait until that ends, or "
                f"{self._remedy}",
            ) from error
        holder = {"process": os.getpid(), "host": socket.gethostname()}
        with suppress(OSError):  # on a full disk, which the next file names
            (self._folder / HOLDER_FILE).write_text(json.dumps(holder))
        self._identity = os.stat(self._folder)

    def release(self) -> None:
        """Gives the lock back, if this object holds it."""
        if self.is_held:
            with suppress(OSError):  # the file is another's, if the directory was replaced
                self.check_directory()
                (self._folder / HOLDER_FILE).unlink(missing_ok=True)
                (self._folder / LOCK_FILE).unlink()  # on Windows `FileLock.release` does it
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
                f"`{self._argument}` must stay in place until the training ends. Received: "
                f"{self._folder}, which was moved, removed or replaced. Put it back to go on after "
                "its last checkpoint; without it, the same command begins anew",
            )

    def _holder(self) -> str:
        try:
            holder = json.loads((self._folder / HOLDER_FILE).read_text())
            return f"process {holder['process']} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has yet to name itself
            return "another process"
