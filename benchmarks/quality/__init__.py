"""What does each way of quantizing cost the pictures, and is one way better than another beyond chance?

``python -m benchmarks.quality --part main --models fashion16`` measures what is not yet measured, ``--table`` prints
the tables. Every row is one calibration (or one foreign tool's), made into a deployable graph and measured in ONNX
Runtime. Rows of one seed share calibration samples, reconstruction and image seeds, so that differences between them
are paired.
"""
