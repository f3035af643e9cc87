"""From the artifact to ONNX files: the float graph, Q/DQ in it, and whether the result is legal."""
