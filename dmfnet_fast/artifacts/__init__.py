"""The files that are exported and opened: written whole, described by metadata, checked for parity."""
