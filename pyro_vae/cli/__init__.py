"""The command line: options, run folders and the commands."""
