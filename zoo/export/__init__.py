"""Export of models to files of other runtimes, each proven in a process without Keras.

    from zoo.export import export, export_generation

    report = export("cnn_48x48-mnist", "digits.onnx", "onnx")
    print(report.verdict)
    export("cnn_48x48-mnist", "small.onnx", "onnx", dtype="int8")  # a quarter of the bytes
    export_generation("gpt-shakespeare", "gpt")  # a directory of files that generate together

`FORMATS` lists the formats with the backend that writes each.
"""

from zoo.export.export import export as export
from zoo.export.formats import FORMATS as FORMATS
from zoo.export.generation import export_generation as export_generation
from zoo.export.report import ExportReport as ExportReport

__all__ = ["FORMATS", "ExportReport", "export", "export_generation"]
