"""Fake quantization: what a float layer computes when it pretends to be INT8."""
