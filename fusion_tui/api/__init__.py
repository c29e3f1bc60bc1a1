"""The local HTTP API. The rule: no logic of its own; a route translates, calls the service, translates back."""
