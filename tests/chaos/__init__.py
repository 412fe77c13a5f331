"""Faults by the hundred: a real broker and real consumers, and an oracle that reads it all back."""
