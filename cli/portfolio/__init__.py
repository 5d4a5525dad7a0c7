"""Many pictures with one command: found, planned, worked on by one process, several or a cluster, and written down."""
