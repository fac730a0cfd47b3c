"""The application that runs on the demonstration's server."""
