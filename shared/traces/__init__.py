"""Export what happens to runs as OpenTelemetry spans, if that is switched on."""
