"""MedSAE's measures of features and raw dimensions against the labels of studies, and the stage that takes them."""
