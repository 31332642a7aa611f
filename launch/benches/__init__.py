"""Benchmarks, each a module with `main(arguments)`."""
