"""From features to names that can be tested: exemplars, explanations, detection scores, concepts, the atlas."""
