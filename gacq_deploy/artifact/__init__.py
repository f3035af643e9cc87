"""What calibration learned: the one record that every later stage reads. PyTorch ends here."""
