"""Names and shapes to a sound plan: every source mapped or dropped, every target filled once."""
