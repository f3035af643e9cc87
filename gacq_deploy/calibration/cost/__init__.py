"""What a calibration costs: memory, disk and time, before it starts."""
