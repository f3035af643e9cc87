"""Which small models do tests run?"""
