"""MedSAE's measures of features against the studies' labels."""
