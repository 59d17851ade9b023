"""Draws an image of a prompt with an exported `text_to_image`, on ONNX Runtime and NumPy alone.

    pip install onnxruntime numpy pillow
    zoo export text_to_image-mnist --format onnx --generation --out digits
    python draw_onnx.py digits "a handwritten seven" --seed 3 --out seven.png

The image is that of `zoo draw` with the same prompt and seed: DDIM with classifier-free guidance,
from the same noise.
"""

import argparse
import itertools
import json
import re
import statistics
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

# ------------------------------------------------------------------ noise, as zoo.random draws it


def mix(x: np.ndarray, addend: np.ndarray | int = 0) -> np.ndarray:
    """Integer hash lowbias32, with a part of a key between its rounds."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D) + np.uint32(addend)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def normal(seed: int, stream: tuple[str, ...], index: int, shape: list[int]) -> np.ndarray:
    """Standard normal numbers of an index in a stream of random numbers."""
    golden = np.uint32(0x9E3779B9)
    parts = [part.encode() for part in stream]
    entropy = [seed, len(parts), *(n for part in parts for n in (len(part), *part))]
    key = np.random.SeedSequence(entropy).generate_state(2)
    x = (np.array([1, 2], np.uint32) + np.uint32(index)) * golden ^ key
    for _ in range(2):
        x = mix(x) + key[::-1]
    bits = mix(np.arange(np.prod(shape), dtype=np.uint32) * golden ^ x[0], x[1])
    inverse = statistics.NormalDist().inv_cdf
    half = np.array([inverse(0.5 + (i + 0.5) / 2**16) for i in range(2**15)])
    table = np.concatenate([-half[::-1], half])
    table = np.float32(table / np.sqrt(np.mean(table**2)) / np.sqrt(2))
    return (table[bits & 0xFFFF] + table[bits >> 16]).reshape(shape)


# ------------------------------------------------------------------ sampling


def encode(prompt: str, vocabulary: dict) -> list[int]:
    """Ids of a prompt: 1, one id for each word, and 0 up to the length of the longest prompt."""
    ids = [1, *(vocabulary["words"].index(x) + 2 for x in re.findall(r"[^\W_]+", prompt.lower()))]
    return ids + [0] * (vocabulary["max_length"] - len(ids))


def draw(directory: Path, prompt: str, steps: int, guidance: float, seed: int) -> np.ndarray:
    """Samples an image, (H, W, C) in [-1, 1]."""
    content = json.loads((directory / "generation.json").read_text())
    vocabulary = json.loads((directory / "prompts.json").read_text())
    encoder = onnxruntime.InferenceSession(directory / "text_encoder.onnx")
    unet = onnxruntime.InferenceSession(directory / "unet.onnx")
    prompts = np.array([encode("", vocabulary), encode(prompt, vocabulary)], np.int32)
    context, mask = encoder.run(["context", "context_mask"], {"prompt": prompts})
    # x_t = signal[t]·x_0 + sigma[t]·noise; the last entries are those of an image without noise.
    signal, sigma = np.append(content["signal"], 1.0), np.append(content["sigma"], 0.0)
    total = len(content["signal"])
    times = np.round(np.arange(total, 0, -total / steps)[:steps]).astype(int) - 1
    x = normal(seed, ("sampler", "first"), 0, content["image_shape"])
    for t, earlier in itertools.pairwise([*times, total]):
        inputs = {"image": np.stack([x, x]), "time": np.array([t, t], np.int32)}
        inputs |= {"context": context, "context_mask": mask}
        ((without, given),) = unet.run(["predicted"], inputs)
        output = without + guidance * (given - without)
        if content["prediction"] == "v":
            x0 = signal[t] * x - sigma[t] * output
        elif content["prediction"] == "noise":
            x0 = (x - sigma[t] * output) / signal[t]
        else:
            x0 = output
        x0 = x0.clip(-1, 1)
        noise = (x - signal[t] * x0) / sigma[t]
        x = np.float32(signal[earlier] * x0 + sigma[earlier] * noise)
    return x


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="what `zoo export --generation` wrote")
    parser.add_argument("prompt", help="text that the image is to show")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps (%(default)s)")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (%(default)s)")
    parser.add_argument("--out", type=Path, default="image.png", help="file (%(default)s)")
    options = vars(parser.parse_args())
    out = options.pop("out")
    image = np.round((draw(**options) + 1) * 127.5).clip(0, 255).astype(np.uint8)
    image = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(image).resize((8 * image.shape[1], 8 * image.shape[0]), 0).save(out)
