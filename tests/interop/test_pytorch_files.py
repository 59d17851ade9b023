"""Files of PyTorch itself, which are read where PyTorch is installed."""

import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import zoo
from zoo.backends.pytorch_file import conversion_command, first_line
from zoo.interop import pytorch

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.once


@pytest.fixture
def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "output.weight": torch.randn((2, 3), generator=generator),
        "output.bias": torch.randn(2, generator=generator),
    }


def small_model() -> keras.Model:
    return zoo.mlp((3,), 2, ())


def assert_loads(state: dict[str, Any], source: Any) -> None:
    model = small_model()
    pytorch.load(model, source)
    for name, array in pytorch.state_dict(model).items():
        np.testing.assert_array_equal(array, state[name].float().numpy())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_reads_files_of_pytorch(
    state: dict[str, Any], zipped: bool, dtype: str, tmp_path: Path
) -> None:
    state = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}
    checkpoint = {
        "epoch": 3,
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
    }
    for content, name in ((state, "state.pth"), (checkpoint, "last.ckpt")):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert_loads(state, tmp_path / name)


def test_load_takes_tensors_that_have_gradients(state: dict[str, Any]) -> None:
    assert_loads(state, {name: t.clone().requires_grad_() for name, t in state.items()})


def test_load_runs_no_code_and_rejects_damaged_files(state: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(3, 2), path)
    with pytest.raises(ValueError, match=r"tensors alone.*model\.pt \(UnpicklingError") as caught:
        pytorch.load(small_model(), path)
    assert "\x1b" not in str(caught.value)
    torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"must be an undamaged file.*model\.pt"):
        pytorch.load(small_model(), path)


def test_load_bounds_the_memory_by_the_file(tmp_path: Path) -> None:
    """A compressed archive, and a tensor of many elements that are one number of the file."""
    torch.save({"output.weight": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"small\.pt \(ValueError: it would take 400\d{4} bytes"):
        pytorch.load(small_model(), tmp_path / "small.pt")
    expanded = {"output.weight": torch.zeros(1).expand(10**12), "output.bias": torch.zeros(2)}
    torch.save(expanded, tmp_path / "expanded.pt")
    with pytest.raises(ValueError, match=r"shape \(1000000000000,\) instead of \(2, 3\)"):
        pytorch.load(small_model(), tmp_path / "expanded.pt")


def test_load_rejects_sparse_and_quantized_tensors(state: dict[str, Any]) -> None:
    for tensor in (torch.eye(2, 3).to_sparse(), torch.zeros((2, 3), dtype=torch.float8_e4m3fn)):
        with pytest.raises(ValueError, match=r"output\.weight is no dense tensor"):
            pytorch.load(small_model(), state | {"output.weight": tensor})


@pytest.mark.slow
def test_conversion_command_writes_a_file_that_loads(state: dict[str, Any], tmp_path: Path) -> None:
    """The command that the error gives where PyTorch is not installed."""
    path = tmp_path / "it's my model.pt"
    torch.save({"net": state, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    assert_loads(state, path)
    program, *arguments = shlex.split(conversion_command(path))
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    assert_loads(state, path.with_suffix(".safetensors"))


@pytest.mark.parametrize("kind", ["plain", "usual_name", "several"])
def test_conversion_command_takes_what_load_takes(
    state: dict[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    content = {
        "plain": state,
        "usual_name": {"ema": state, "state_dict": state, "epoch": 1},
        "several": {"ema": {}, "net": state, "other": state},
    }[kind]
    torch.save(content, path)
    _, _, code, *arguments = shlex.split(conversion_command(path))
    monkeypatch.setattr(sys, "argv", ["-c", *arguments])
    if kind == "several":
        text = r"Several entries hold tensors: \['net', 'other'\]. Append the name of one"
        with pytest.raises(SystemExit, match=text):
            exec(code, {})
        monkeypatch.setattr(sys, "argv", ["-c", *arguments, "net"])
    exec(code, {})
    assert_loads(state, path.with_suffix(".safetensors"))


def test_first_line_has_no_colors() -> None:
    error = RuntimeError("\x1b[1mWeights only\x1b[0m load \x1b[38;5;1mfailed\x1b[0m.\nMore")
    assert first_line(error) == "Weights only load failed."
    assert first_line(ValueError()) == "ValueError"
