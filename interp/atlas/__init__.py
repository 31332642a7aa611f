"""The atlas: one HTML file with every feature, its exemplars, scores and steering examples.

`data` and `steering_data` gather what the page shows from the stages' files, `page` renders it, `stage` runs both.
"""
