"""Generates with exported files, without Keras: `python -P generation_runtime.py FOLDER`.

FOLDER/request.json names the directory of the files, which `generation.json` there describes, and
the prompts. Tokens and their logits go to FOLDER/tokens.npy and FOLDER/logits.npy, images to
FOLDER/images.npy. FOLDER/evaluated-i.npz has inputs of the whole model; its outputs, which the
parts compute, go to FOLDER/predicted-i.npy. Like `file_runtime`, whose functions load the files,
the program imports nothing of this package.
"""

import itertools
import json
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Graphs = Mapping[str, Callable[[Arrays], Arrays]]


def load(directory: Path, content: Mapping[str, Any]) -> Graphs:
    """The files of a directory as functions from inputs to outputs by name."""
    runtimes = runpy.run_path(str(Path(__file__).with_name("file_runtime.py")))["RUNTIMES"]
    load_file, _ = runtimes[content["format"]]()
    graphs = {}
    for name, entry in content["graphs"].items():
        run = load_file(str(directory / entry["file"]), entry["outputs"])

        def call(inputs: Arrays, run: Any = run, names: Any = entry["outputs"]) -> Arrays:
            return dict(zip(names, run(inputs), strict=True))

        graphs[name] = call
    return graphs


def generate(
    graphs: Graphs, content: Mapping[str, Any], request: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy tokens after each prompt, (B, N), and the logits of each, (B, N, V)."""
    context = content["context"]
    rows = [list(prompt) for prompt in request["prompts"]]

    def prefill() -> Arrays:
        width = max(map(len, rows))
        padding = np.array([width - len(row) for row in rows], np.int32)
        ids = np.array([[0] * (width - len(row)) + row for row in rows], np.int32)
        state = {"ids": ids, "padding": padding}
        if request["sources"] is not None:
            width = max(map(len, request["sources"]))
            padded = [row + [content["padding"]] * width for row in request["sources"]]
            state["source"] = np.array([row[:width] for row in padded], np.int32)
        return {"padding": padding, **past(graphs["prefill"](state))}

    tokens, all_logits = [], []
    state = prefill()
    while True:
        all_logits.append(state.pop("logits"))
        tokens.append(all_logits[-1].argmax(-1).astype(np.int32))
        if len(tokens) == request["new_tokens"]:
            return np.stack(tokens, 1), np.stack(all_logits, 1)
        for row, token in zip(rows, tokens[-1].tolist()):
            row.append(token)
        if max(map(len, rows)) > context:  # it is full: again with its later half
            half = max(context // 2, 1)
            rows = [row[-half:] if len(row) > context else row for row in rows]
            state = prefill()
        else:
            state |= past(graphs["step"](state | {"ids": tokens[-1][:, None]}))


def past(outputs: Arrays) -> Arrays:
    """Logits, and the other outputs by the names of a step's inputs."""
    return {"logits": outputs.pop("logits")} | {f"past_{k}": x for k, x in outputs.items()}


def predict(graphs: Graphs, inputs: Arrays) -> np.ndarray:
    """Outputs of the whole model; those of a language model token by token."""
    if "unet" in graphs:
        text = graphs["text_encoder"]({"prompt": inputs.pop("prompt")})
        (output,) = graphs["unet"]({**inputs, **text}).values()
        return output
    ids = inputs.pop("target" if "source" in inputs else "ids")
    state = {"padding": np.zeros(len(ids), np.int32)}
    state |= past(graphs["prefill"](state | {"ids": ids[:, :1], **inputs}))
    logits = [state.pop("logits")]
    for index in range(1, ids.shape[1]):
        state |= past(graphs["step"](state | {"ids": ids[:, index : index + 1]}))
        logits.append(state.pop("logits"))
    return np.stack(logits, 1)


def draw(
    graphs: Graphs, content: Mapping[str, Any], request: Mapping[str, Any], x: np.ndarray
) -> np.ndarray:
    """Images of prompts from their initial noise, by DDIM with guidance."""
    prompts = np.array(request["prompts"], np.int32)
    empty = np.zeros_like(prompts)
    empty[:, 0] = prompts[:, 0]  # the beginning of each prompt
    text = graphs["text_encoder"]({"prompt": np.concatenate([empty, prompts])})
    signal, sigma = (np.append(content[name], end) for name, end in (("signal", 1), ("sigma", 0)))
    total = len(signal) - 1
    steps = np.round(np.arange(total, 0, -total / request["steps"])[: request["steps"]]) - 1
    times = [*steps.astype(int), total]  # the last has no noise
    for t, earlier in itertools.pairwise(times):
        time = np.full(2 * len(x), t, np.int32)
        (output,) = graphs["unet"]({"image": np.concatenate([x, x]), "time": time, **text}).values()
        without, given = np.split(output, 2)
        output = without + request["guidance_scale"] * (given - without)
        if content["prediction"] == "v":
            x0 = signal[t] * x - sigma[t] * output
        elif content["prediction"] == "noise":
            x0 = (x - sigma[t] * output) / signal[t]
        else:
            x0 = output
        x0 = x0.clip(-1, 1)
        noise = (x - signal[t] * x0) / sigma[t]
        x = (signal[earlier] * x0 + sigma[earlier] * noise).astype(np.float32)
    return x


def main(folder: Path) -> None:
    sys.modules["keras"] = None  # type: ignore[assignment]  # an import of Keras fails
    request = json.loads((folder / "request.json").read_text("utf-8"))
    directory = Path(request["directory"])
    content = json.loads((directory / "generation.json").read_text("utf-8"))
    graphs = load(directory, content)
    if "prefill" in graphs:
        tokens, logits = generate(graphs, content, request)
        np.save(folder / "tokens.npy", tokens)
        np.save(folder / "logits.npy", logits)
    else:
        noise = np.load(folder / "noise.npy")
        np.save(folder / "images.npy", draw(graphs, content, request, noise))
    for number in range(request["evaluated"]):
        with np.load(folder / f"evaluated-{number}.npz") as arrays:
            inputs = dict(arrays)
        np.save(folder / f"predicted-{number}.npy", predict(graphs, inputs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
