"""Commands that use trained models."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.files.conftest import finished_runs as finished_runs
from zoo import datasets
from zoo.__main__ import main
from zoo.files.weights import packed_names
from zoo.tasks.command import DEFAULTS

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a seven.png"
    data = datasets.load("mnist", train_examples=1, test_examples=1)
    Image.fromarray(data.x_test[0, ..., 0]).save(path)
    return path


def test_weights_lists_the_weights_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["weights"])
    lines = capsys.readouterr().out.splitlines()
    for name in packed_names():
        assert any(name in line and "MB" not in line for line in lines)
    (line,) = (line for line in lines if "mlp-mnist" in line)
    for text in ("407,050", "0.8", "mnist", "test_accuracy 0.9785", "CC-BY-SA-3.0"):
        assert text in line


def test_card_prints_all_of_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    main(["card", "mlp-mnist"])
    text = capsys.readouterr().out
    for part in (
        "num_classes: 10", "hidden_units: [512]", "python recipes/mnist.py --model mlp", "SHA-256",
        "metrics, jax", "metrics, tensorflow", "metrics, torch", "test_accuracy 0.9785", "seed: 0",
        "0, 1, 2, 3", "float16", "White strokes on black", "CC-BY-SA-3.0",
    ):  # fmt: skip
        assert part in text, part


def test_classify_prints_labels_with_probabilities(
    seven: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["classify", str(seven), "--weights", "mlp-mnist", "--top", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "100.0%  7"


def test_commands_take_a_run_directory(
    finished_runs: Path, seven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["classify", str(seven), "--run-dir", str(finished_runs / "classifier")])
    assert len(capsys.readouterr().out.splitlines()) == 5
    main(["generate", "to be", "--run-dir", str(finished_runs / "text"), "--tokens", "3"])
    assert capsys.readouterr().out.startswith("to be")
    out = tmp_path / "drawn.png"
    folder = str(finished_runs / "prompts")
    main(["draw", "a seven", "--run-dir", folder, "--steps", "2", "--out", str(out)])
    with Image.open(out) as image:
        assert np.asarray(image).size > 0


@pytest.mark.parametrize("command", DEFAULTS)
def test_commands_without_weights_say_what_there_is(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the package has none for them."""
    monkeypatch.setattr("zoo.tasks.command.packed_names", lambda: ["mlp-mnist"])
    name, recipe = DEFAULTS[command]
    text = (
        rf"`weights` or `run_dir` must be given, .* no {name}.*The package has mlp-mnist; `zoo "
        rf"train {recipe} --run-dir DIR`"
    )
    with pytest.raises(ValueError, match=text):
        main([command, "text"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "x", "--weights", "lenet"], "`weights` must be one of .*'lenet'"),
        (["generate", "x", "--weights", "mlp-mnist"], "a model for `zoo generate`.*a mlp"),
        (["next-word", "x", "--run-dir", "nowhere"], "`run_dir` must be one of .*nowhere'"),
        (["draw", "x", "--weights", "a", "--run-dir", "b"], "must not be given together"),
        (["translate", "x", "--weights", "mlp-mnist"], "as `zoo train translate` trains it"),
        (["card", "lenet"], "`name` must be one of .*mlp-mnist"),
    ],
)
def test_commands_reject_other_models(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(arguments)


def test_classify_names_a_file_that_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"photo\.png: its format is unknown"):
        main(["classify", str(path), "--weights", "mlp-mnist"])


def test_card_rejects_a_run(finished_runs: Path) -> None:
    with pytest.raises(ValueError, match="`name` must be that of weights with a card"):
        main(["card", str(finished_runs / "text")])
