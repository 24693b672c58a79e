"""Many cells on one warm cluster: the driver."""
