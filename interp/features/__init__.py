"""What is known of each feature: promoted tokens, relatives, concepts, and the tables that hold it all."""
