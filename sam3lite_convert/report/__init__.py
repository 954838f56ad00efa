"""Shows records, on a terminal and as a page."""
