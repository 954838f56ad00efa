"""Shows records: on a terminal and as an HTML page."""
