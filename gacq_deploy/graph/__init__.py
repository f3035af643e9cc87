"""What stands in an ONNX graph: its nodes and initializers by name, its files, its header, its quantizers."""
