"""Workbooks and figures of finished runs."""
