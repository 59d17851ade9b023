"""Continues a text with an exported `gpt`, on ONNX Runtime and NumPy alone.

    pip install onnxruntime numpy tokenizers
    zoo export gpt-shakespeare --format onnx --generation --out gpt
    python generate_onnx.py gpt "ROMEO:"

`prefill` takes the ids of the prompt, (B, T), and `step` one token, (B, 1). Both return the logits
of the next token, (B, V), and the keys and values of all tokens, which the next `step` takes with
the prefix "past_".
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def load(directory: Path, name: str):
    """A file as a function from inputs by name to the logits and the inputs of the next step."""
    session = onnxruntime.InferenceSession(directory / f"{name}.onnx")
    names = [output.name for output in session.get_outputs()]

    def run(**inputs):
        outputs = dict(zip(names, session.run(None, inputs)))
        return outputs.pop("logits"), {f"past_{name}": x for name, x in outputs.items()}

    return run


def generate(directory: Path, prompt: list[int], count: int):
    """Yields the most likely token after the prompt, then after that token, and so on."""
    content = json.loads((directory / "generation.json").read_text())
    prefill, step = load(directory, "prefill"), load(directory, "step")
    padding = np.zeros(1, np.int32)  # tokens before the prompt, in a batch of unequal ones
    tokens = prompt[-content["context"] :]
    logits, past = prefill(ids=np.array([tokens], np.int32), padding=padding)
    for _ in range(count):
        token = int(logits[0].argmax())
        yield token
        tokens.append(token)
        if len(tokens) > content["context"]:  # it is full: continue from its later half
            tokens = tokens[-(content["context"] // 2) :]
            logits, past = prefill(ids=np.array([tokens], np.int32), padding=padding)
        else:
            logits, past = step(ids=np.array([[token]], np.int32), padding=padding, **past)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="what `zoo export --generation` wrote")
    parser.add_argument("prompt", help="text to continue")
    parser.add_argument("--tokens", type=int, default=200, help="number of tokens (%(default)s)")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.directory / "vocabulary.json"))
    prompt = tokenizer.encode(arguments.prompt).ids
    tokens = [*generate(arguments.directory, prompt, arguments.tokens)]
    print(arguments.prompt + tokenizer.decode(tokens))
