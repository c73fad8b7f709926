"""Benchmarks' own annotation files -> one table of samples. One small parser a family; `registry` lists them."""
