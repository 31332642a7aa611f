"""MedSAE's measures of features and controls against the labels of studies, and the stage that takes them."""
