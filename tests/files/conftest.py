"""Finished runs of untrained models, which take no training."""

import hashlib
import shutil
from pathlib import Path

import pytest

from benchmarks.hardship import write_runs


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of four finished runs: text, prompts, latents and classifier."""
    folder = tmp_path_factory.mktemp("finished")
    write_runs(folder)
    return folder


@pytest.fixture
def run_folder(finished_runs: Path, tmp_path: Path) -> Path:
    """Copies of the finished runs, to be damaged."""
    return Path(shutil.copytree(finished_runs, tmp_path / "runs", copy_function=shutil.copyfile))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every regular file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
