"""One HTML page about a model or a folder of predictions."""
