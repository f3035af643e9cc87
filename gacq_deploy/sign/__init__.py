"""How does a run get the signature of whoever answers for it?"""
