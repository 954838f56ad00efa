"""One module a command: does it, returns a typed record, prints nothing."""
