"""What is known of each feature: activity, relatives, logit lens, concepts, and the tables and summary that hold it."""
