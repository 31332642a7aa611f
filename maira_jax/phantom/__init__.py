"""The phantom: a synthetic world of chest X-rays whose truth is known, and how its model was made and evaluated."""
