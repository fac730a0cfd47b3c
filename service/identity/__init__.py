"""Who an agent is, and who may push for a server's identity now."""
