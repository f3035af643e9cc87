"""TensorRT and TensorRT-RTX at run time: compiled engines on the device."""
