"""Selection: which features a sweep steers."""
