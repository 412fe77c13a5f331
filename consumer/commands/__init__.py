"""The commands of the command line beside `run`, a module each."""
