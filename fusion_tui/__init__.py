"""The face: terminal app, command line and HTTP API over `engine.service`."""
