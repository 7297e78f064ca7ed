"""Samplers, and what is drawn with them."""
