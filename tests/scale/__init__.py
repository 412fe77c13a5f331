"""Many replicas on many partitions, on one broker and on a cluster."""
