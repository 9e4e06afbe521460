"""Image data sets: by name, from the Hub, from folders and files."""
