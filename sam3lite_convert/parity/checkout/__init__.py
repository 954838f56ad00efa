"""The user's own clone of the original."""
