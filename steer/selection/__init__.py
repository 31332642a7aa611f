"""Which features a sweep steers."""
