"""Training of denoisers and classifiers."""
