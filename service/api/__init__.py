"""HTTP: agents under /agent/v1 (client certificates), operators under /api/v1 (bearer token)."""
