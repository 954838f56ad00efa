"""Converts a folder back, compares it with its source, and says what is wrong."""
