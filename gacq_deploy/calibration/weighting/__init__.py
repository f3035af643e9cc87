"""How much each calibration sample counts: gradient alignment and its meta-learning (arXiv 2602.01289)."""
