"""Handing models on to other libraries."""
