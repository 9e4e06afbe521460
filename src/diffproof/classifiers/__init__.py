"""Image classifiers as modules from [0, 1] pixels to logits."""
