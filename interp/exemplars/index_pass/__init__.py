"""One pass over an activation store, on all devices: blocks of contexts, the compiled program, and what it keeps."""
