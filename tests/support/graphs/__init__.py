"""Which small graphs do tests read, judge and run?"""
