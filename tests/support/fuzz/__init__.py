"""Which readers take other people's files, what is tried on each, and what came of it?"""
