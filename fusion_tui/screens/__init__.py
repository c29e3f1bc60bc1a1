"""One screen per file; data comes in snapshots from the app, actions go out through `engine.service`."""
