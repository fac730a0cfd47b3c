"""How much of the line and of the machine replication may take: a bandwidth limit, and how it yields to the server."""
