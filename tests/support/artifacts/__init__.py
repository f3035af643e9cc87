"""What do runs look like that were calibrated, judged or built?"""
