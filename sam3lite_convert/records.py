"""Typed records: what a command returns, and its JSON."""
