"""Studies: what every stage reads of a patient's examination, and the readers of the collections they come from."""
