"""The work, without a screen and without HTTP. `engine.service` is the one door."""
