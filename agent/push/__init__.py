"""Push: from the disks of this server to a recovery point at the receiver."""
