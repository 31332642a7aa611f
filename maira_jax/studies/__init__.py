"""Studies: what every stage reads of a patient's examination, and the readers of the data sets they come from."""
