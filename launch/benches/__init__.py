"""Benchmarks against other libraries, each a module with `main(options)`."""
