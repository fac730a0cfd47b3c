"""Pull: makes a disk equal to a recovery point, fetching only what differs."""
