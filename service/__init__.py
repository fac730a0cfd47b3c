"""The service: receiver, API and command line. The only place where the parts are put together."""
