"""Export of models to files of other runtimes, each proven in a process without Keras.

    from zoo.export import export

    report = export("gpt-shakespeare", "gpt.onnx", "onnx")
    print(report.verdict)

`FORMATS` lists the formats with the backend that writes each.
"""

from zoo.export.export import export as export
from zoo.export.formats import FORMATS as FORMATS
from zoo.export.report import ExportReport as ExportReport

__all__ = ["FORMATS", "ExportReport", "export"]
