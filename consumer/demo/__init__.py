"""The demonstration: a real image predicted tile by tile in one process, stitched in another."""
