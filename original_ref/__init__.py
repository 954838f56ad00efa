"""The reference text encoder: the original's modules and numerics, and no conversion code.

It is written from the specification of the original encoder, and is not here yet.
"""
