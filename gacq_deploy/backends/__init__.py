"""How does a graph run? Named arrays in, named arrays out, in each library."""
