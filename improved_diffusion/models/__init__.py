"""What the networks are made of, and what their weights tell of them."""
