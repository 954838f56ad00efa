"""Reads any checkpoint into an index of names, shapes and byte positions; runs nothing."""
