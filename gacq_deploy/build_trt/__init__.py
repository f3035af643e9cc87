"""How does a Q/DQ graph become an engine, and what did the compiler make of it?"""
