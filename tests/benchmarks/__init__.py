"""Throughput, measured against what else could be used."""
