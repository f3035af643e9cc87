"""What stands in for TensorRT and CUDA where neither can run?"""
