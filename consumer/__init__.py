"""Stitches predicted image tiles from RabbitMQ into Zarr, acknowledged after a durable write."""

__version__ = "0.1.0"
