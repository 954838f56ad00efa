"""The command line: options in, command called, report shown."""
