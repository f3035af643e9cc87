"""How do tests run commands, processes and edited checkouts?"""
