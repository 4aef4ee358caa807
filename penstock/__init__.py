"""The face: command line, `penstock up`, Python client."""
