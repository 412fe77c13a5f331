"""The commands of `consumer`, a module each with `main`: arguments in, exit code out."""
