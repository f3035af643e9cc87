"""The float16 form of a Q/DQ graph that the builder of TensorRT compiles."""
