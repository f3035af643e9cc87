"""How does a Q/DQ graph become an engine plan, and what did the compiler make of it?"""
