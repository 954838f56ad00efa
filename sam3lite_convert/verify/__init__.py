"""Turns a folder back, compares, names what is wrong."""
