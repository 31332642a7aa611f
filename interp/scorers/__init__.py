"""How good explanations are: detection and fuzzing, controls, statistics, and scores against known truth."""
