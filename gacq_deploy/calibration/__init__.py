"""Which rounding and scales make the quantized model agree with the float one? Learned block by block."""
