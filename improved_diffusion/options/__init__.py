"""Every flag, once."""
