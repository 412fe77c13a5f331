"""The commands of `consumer`, a module each with `main`: arguments in, exit code out.

All but `run` need no broker and only read what the ledgers say; `reset` also writes, and takes the
store for it.
"""
