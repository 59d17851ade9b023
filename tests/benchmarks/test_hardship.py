"""The campaigns of hard use, in a short form. Runs that are killed are in the recipes' tests."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import hardship

pytestmark = pytest.mark.once


def test_damaged_and_forged_files_are_refused_or_harmless(tmp_path: Path) -> None:
    config = hardship.Config(
        campaigns=("damage", "forgeries"), damaged=80, forged=60, out=tmp_path / "counts.json"
    )
    outcomes = hardship.main(config)
    assert [fault for outcome in outcomes.values() for fault in outcome.faults] == []
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["damage"]["damaged"] == 80
    assert counts["damage"]["refused"] > 30
    assert counts["damage"]["restored from step 1"] > 5  # the newest checkpoint was damaged
    assert counts["forgeries"]["forged"] == 60
    assert counts["forgeries"]["refused"] > 30


def test_damage_to_a_file_that_is_taken_for_a_whole_one_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardship, "open_run", lambda folder: None)
    outcome = hardship.damage(hardship.Config(damaged=20), tmp_path)
    assert any("A damaged file was taken for a whole one" in fault for fault in outcome.faults)


def test_code_that_a_file_names_and_several_lines_are_faults(tmp_path: Path) -> None:
    outcome = hardship.Outcome()

    def traceback() -> None:
        raise ValueError("one\ntwo")

    hardship.attempt(tmp_path, traceback, outcome, "valid")
    hardship.attempt(tmp_path, lambda: 1 / 0, outcome, "valid")  # type: ignore[arg-type]
    hardship.attempt(tmp_path, lambda: None, outcome, "valid")
    assert [fault.partition(": ")[2][:12] for fault in outcome.faults] == [
        "not one line", "ZeroDivision",
    ]  # fmt: skip
    assert outcome.counts == {"valid": 1}


def test_forged_value_changes_a_document() -> None:
    document: dict[str, Any] = {"a": [1, {"b": 2}], "c": None}
    choices = random.Random(0)
    texts = {
        json.dumps(hardship.forge_value(json.loads(json.dumps(document)), choices, "x"))
        for _ in range(50)
    }
    assert len(texts) > 8
    assert all("x" in text or len(text) < len(json.dumps(document)) for text in texts)


def test_command_rejects_unknown_campaigns() -> None:
    with pytest.raises(SystemExit, match=r"`campaigns` must be among kills, .* Received: flood"):
        hardship.Config(campaigns=("flood",))


def test_disturbed_run_that_differs_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Disturbed(hardship.Runs):
        def __init__(self) -> None:
            self.folder = Path("mnist-torch")

        def finish(self, run_dir: Path) -> tuple[int, str]:
            return 0, ""

        def differences(self, run_dir: Path) -> list[str]:
            return ["dense/kernel"] if run_dir.name == "kill-1" else []

    outcome = hardship.Outcome()
    for number in range(2):
        hardship.check_finished(Disturbed(), Path(f"kill-{number}"), outcome)
    assert outcome.counts == {"runs": 2, "equal runs": 1}
    assert outcome.faults == ["kill-1 of mnist-torch differs: dense/kernel"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found on Linux")
def test_killed_workers_that_do_not_start_again_are_a_fault(tmp_path: Path) -> None:
    program = """
import subprocess, sys
workers = [subprocess.Popen(["sleep", "0.5"]) for _ in range(2)]
if any([worker.wait() for worker in workers]):
    sys.exit(sys.argv[1]) if len(sys.argv) > 2 else print(sys.argv[1], file=sys.stderr)
"""

    class Sleepers(hardship.Runs):
        seconds = 0.5

        def __init__(self, *arguments: str):
            self.folder = tmp_path
            self.arguments = arguments

        def start(self, run_dir: Path, largest_file: int | None = None) -> subprocess.Popen[str]:
            line = [sys.executable, "-c", program, *self.arguments]
            return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)

        def differences(self, run_dir: Path) -> list[str]:
            return []

    outcome = hardship.kill_workers(Sleepers("Starting again"), 2, 0)
    assert outcome.counts == {"kills": 2, "equal runs": 2}
    assert outcome.faults == []
    for arguments, text in ((("gave up",), "status 0, gave up"), (("no", "1"), "status 1, no")):
        (fault,) = hardship.kill_workers(Sleepers(*arguments), 1, 0).faults
        assert text in fault
