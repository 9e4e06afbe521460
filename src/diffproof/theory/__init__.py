"""The theory of certified purification on distributions whose density is known exactly."""
