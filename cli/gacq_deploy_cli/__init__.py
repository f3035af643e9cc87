"""How does a person ask? Thin click commands: parse, call one function, print, choose the exit code."""
