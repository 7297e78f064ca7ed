"""Image files in, pictures out."""
