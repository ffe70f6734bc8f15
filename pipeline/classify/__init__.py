"""python -m pipeline.classify: from images of any kind to a table of answers."""
