"""Export of models that generate: one file for each part, proven alone and together."""

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from zoo.diffusion.pipeline import DiffusionPipeline
from zoo.export import formats, generation_proof
from zoo.export.evaluation import Evaluation
from zoo.export.export import REASONS, Job, Progress, TestData, check_path, evaluation_of
from zoo.export.formats import Format
from zoo.export.generation_proof import GenerationProof, ImageProof, Proven, TokenProof
from zoo.export.parts import decoding_parts, diffusion_parts, source_vocabulary
from zoo.export.report import ExportReport
from zoo.export.source import Source, describe, find_saved
from zoo.export.storage import WeightDType
from zoo.files.saved import SavedModel
from zoo.files.weights import CARD
from zoo.generation.decoding import check_language_model, is_encoder_decoder, max_length
from zoo.layers.transformer_block import TransformerBlock
from zoo.parity.report import RungReport
from zoo.parity.workers import Workers
from zoo.validation import FilePath, Index, JSONObject, Positive, TextList, validated
from zoo.validation import Source as NameOrPath

VOCABULARY, PROMPTS = "vocabulary.json", "prompts.json"
_LARGEST_FILE = 1 << 24


@dataclass(frozen=True)
class _Generator:
    """A model that generates, with all that its directory gets.

    Attributes:
        parts: Source of each file.
        proof: Proof of the files together.
        files: Content of further files by name.
    """

    parts: Mapping[str, Source]
    proof: GenerationProof
    files: Mapping[str, bytes]


@validated
def export_generation(
    model: keras.Model | NameOrPath,
    path: FilePath,
    format: str = "onnx",
    *,
    arguments: JSONObject | None = None,
    backends: TextList | None = None,
    workers: Workers | None = None,
    dtype: WeightDType = "float32",
    tolerance: Positive | None = None,
    test_data: TestData = "part",
    seed: Index = 0,
    time_limit: Positive = 600.0,
    progress: Progress | None = None,
) -> ExportReport:
    """Writes the parts of a model that generates to a directory, and proves them.

    A `gpt` or a `transformer` is written as a prefill, which takes prompts, and a step, which takes
    a token of each prompt and the caches of those before; a `text_to_image` model as its text
    encoder and its U-Net. `generation.json` describes the files. The vocabulary of a trained model
    is beside it. Each file is proven as by `export`. Then a process without Keras generates with
    all of them: the greedy tokens, or the images, must be those of the package on every backend.

    Args:
        model: A `gpt` or `transformer`: Keras model, or name of a builder of the zoo, possibly with
            "/example"; name of trained weights; weights folder; directory of a finished run; or
            "package.module:function". A `text_to_image` model is a trained one.
        path: Path of the directory, which must be empty, or not be there.
        format: Name of the format, one of `FORMATS`.
        arguments: Keyword arguments of the builder.
        backends: Backends with which the files are compared; by default all installed ones.
        workers: Workers of an earlier call, which replace `backends` and `time_limit`.
        dtype: Type in which the files store the weights, as for `export`.
        tolerance: Largest distance of the outputs of a file, relative to their scale, as for
            `export`.
        test_data: How much of a trained model's test data is used, as for `export`.
        seed: Seed of the random inputs.
        time_limit: Time limit of one task, in seconds.
        progress: Callback, called with a line of text.

    Returns:
        A report with the rungs of each file and that of the generation. `settings` has what was
        measured of each file.

    Raises:
        ValueError: If an argument is invalid; the text names the argument.
        ImportError: If a package that the format needs is missing; the text says how to install it.
        OSError: If a file cannot be read or written.
    """
    entry = formats.get(format, dtype)
    if entry.name == "safetensors":
        raise ValueError(
            "`format` must be one that computes, to generate. Received: format='safetensors'"
        )
    if dtype == "int8" and entry.rounds_activations:
        raise ValueError(
            f"`dtype` must be float32 or float16 for the generation with {entry.name}, whose int8 "
            "also rounds what the weights are multiplied with, so that other tokens and images "
            "come out. Received: dtype='int8'"
        )
    check_path(path)
    if path.is_file():
        raise ValueError(
            f"`path` must be a directory or not be there. Received: path={str(path)!r}, a file"
        )
    started = time.perf_counter()
    report_progress = progress or (lambda _: None)
    with contextlib.ExitStack() as stack:
        if workers is None:
            workers = stack.enter_context(Workers(backends, time_limit, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the path, so that the proven directory is moved at once.
        temporary = tempfile.TemporaryDirectory(prefix=".zoo-", dir=path.parent)
        folder = Path(stack.enter_context(temporary))
        generator = _describe(model, arguments, tolerance, seed, entry, dtype, folder)
        directory = folder / "files"
        directory.mkdir()
        reports: dict[str, ExportReport] = {}
        for name, part in generator.parts.items():
            report_progress(name)
            part_folder = folder / f"proof-{name}"
            part_folder.mkdir()
            file = directory / _file_name(name, entry)
            job = Job(part, entry, file, workers, part_folder, report_progress)
            reports[name] = job.execute(seed, time_limit)
            if not reports[name].proven:
                break
        proven = None
        evaluation, notes = evaluation_of(model, test_data)
        if all(report.proven for report in reports.values()):
            report_progress("generation")
            for name, content in generator.files.items():
                (directory / name).write_bytes(content)
            generation_proof.write_content(generator.proof, directory)
            proven = generation_proof.prove(
                generator.proof, entry.runtime, directory, folder, workers, evaluation, time_limit
            )
        seconds = round(time.perf_counter() - started, 1)
        report = _merged(generator, entry, dtype, seed, reports, proven, evaluation, notes, seconds)
        if report.proven:
            if path.is_dir():
                path.rmdir()  # it is empty
            os.replace(directory, path)
        return report


def _merged(
    generator: _Generator,
    entry: Format,
    dtype: WeightDType,
    seed: int,
    reports: Mapping[str, ExportReport],
    proven: Proven | None,
    evaluation: Evaluation | None,
    notes: Sequence[str],
    seconds: float,
) -> ExportReport:
    """One report of all files and, if all are proven, of the generation."""
    rungs = [
        (f"{name}: {rung.title}", rung.reason, rung.rows)
        for name, report in reports.items()
        for rung in report.rungs
    ]
    settings: dict[str, Any] = {
        "format": entry.name,
        "weights": dtype,
        "seed": seed,
        "files": {name: dict(report.settings) for name, report in reports.items()},
    }
    all_notes = [f"{name}: {note}" for name in reports for note in reports[name].notes] + [*notes]
    if proven is not None:
        rungs.append(("generation", generator.proof.reason, tuple(proven.rows)))
        if evaluation is not None:
            rungs.append(("metrics", REASONS["metrics"], tuple(proven.metrics)))
            texts = [f"{name} {value:.6g}" for name, value in proven.values.items()]
            all_notes.append(f"{', '.join(texts)} on {evaluation.examples}")
            settings |= {"examples": evaluation.examples, "file_metrics": proven.values}
    return ExportReport(
        model=generator.proof.source.name,
        environments=dict(
            pair for report in reports.values() for pair in report.environments.items()
        ),
        settings=settings,
        notes=tuple(all_notes),
        rungs=tuple(RungReport(number, *rung) for number, rung in enumerate(rungs, 1)),
        seconds=seconds,
    )


def _file_name(part: str, entry: Format) -> str:
    return f"{part}.{entry.name}"


def _describe(
    model: Any,
    arguments: Mapping[str, Any] | None,
    tolerance: float | None,
    seed: int,
    entry: Format,
    dtype: WeightDType,
    folder: Path,
) -> _Generator:
    """Finds the model, its parts and its vocabulary."""
    saved = find_saved(model)
    if saved is not None and "diffusion.json" in saved:
        return _diffusion(saved, arguments, tolerance, seed, entry, dtype, folder)
    source = describe(model, arguments, None, tolerance, folder, entry, dtype)
    built, _ = source.load_model()
    if not _is_transformer(built):
        raise ValueError(
            "`model` must be a gpt, a transformer, or trained weights or a finished run of a "
            f"text_to_image model, which have its noise schedule. Received: model={source.name!r}"
        )
    parts = decoding_parts(source)
    content = _content(entry, parts) | {"context": max_length(built)}
    files = _saved_files(saved, VOCABULARY)
    content["vocabulary"] = VOCABULARY if VOCABULARY in files else None
    vocabulary_of_sources = None
    if is_encoder_decoder(built):
        content["padding"] = built.get_layer("source_mask").padding
        vocabulary_of_sources = source_vocabulary(built)
    tokens = TokenProof.of(
        source, content, int(built.output.shape[-1]), vocabulary_of_sources, seed
    )
    return _Generator(parts, tokens, files)


def _is_transformer(model: keras.Model) -> bool:
    try:
        check_language_model(model)
    except ValueError:
        return False
    return any(isinstance(layer, TransformerBlock) for layer in model.layers)


def _diffusion(
    saved: SavedModel,
    arguments: Mapping[str, Any] | None,
    tolerance: float | None,
    seed: int,
    entry: Format,
    dtype: WeightDType,
    folder: Path,
) -> _Generator:
    source = describe(str(saved.folder), arguments, None, tolerance, folder, entry, dtype)
    pipeline = DiffusionPipeline.load(saved.folder)
    if pipeline.tokenizer is None or pipeline.latent_scaler is not None:
        raise ValueError(
            "`model` must be a text_to_image model of pixels, without an autoencoder. Received: "
            f"model={str(saved.folder)!r}. Write its networks with `export`"
        )
    parts = diffusion_parts(pipeline, tolerance, folder, entry, dtype)
    schedule = pipeline.spec.make_diffusion().schedule
    content = _content(entry, parts) | {
        "prompts": PROMPTS,
        "prompt_length": pipeline.tokenizer.max_length,
        "image_shape": list(pipeline.sampler.shape),
        "prediction": pipeline.spec.prediction,
        "signal": schedule.signal.tolist(),
        "sigma": schedule.sigma.tolist(),
    }
    images = ImageProof(source, content, pipeline.spec, len(pipeline.tokenizer), seed)
    return _Generator(parts, images, _saved_files(saved, PROMPTS))


def _content(entry: Format, parts: Mapping[str, Source]) -> dict[str, Any]:
    """What `generation.json` says of the files."""
    graphs = {
        name: {
            "file": _file_name(name, entry),
            "inputs": {
                key: {"dtype": axes.dtype, "shape": list(axes.shape)}
                for key, axes in part.axes.items()
            },
            "outputs": list(part.outputs),
        }
        for name, part in parts.items()
    }
    return {"format": entry.name, "graphs": graphs}


def _saved_files(saved: SavedModel | None, *names: str) -> dict[str, bytes]:
    """Files of a trained model that its directory gets: those that are there, and the card."""
    if saved is None:
        return {}
    files = {x: saved.read_bytes(x, _LARGEST_FILE) for x in names if x in saved}
    card = saved.folder / CARD
    return files | ({CARD: card.read_bytes()} if card.exists() else {})
